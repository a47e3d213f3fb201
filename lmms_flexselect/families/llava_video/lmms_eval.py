"""``--model llava_vid_flexselect``: upstream's LLaVA-Video wrapper with the visual tokens selected."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger
from torch import Tensor

from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, continuation_loss, load_llava_video
from lmms_flexselect.families.llava_video.frames import LlavaClip, sample_frames
from lmms_flexselect.families.llava_video.llava_package import DEFAULT_IMAGE_TOKEN, conv_templates, upstream_llava_vid
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, check_pooling
from lmms_flexselect.families.llava_video.reader import LlavaVideoReader
from lmms_flexselect.families.llava_video.visuals import (
    LlavaFrames,
    VisualSource,
    check_frames,
    read_frames,
    read_key,
    visuals_key,
)
from lmms_flexselect.models.plugin import FlexSelectPlugin
from lmms_flexselect.models.requests import Paths
from lmms_flexselect.models.selecting_model import SelectingModel, prompt_counts
from lmms_flexselect.models.upstream import with_visuals
from lmms_flexselect.options import check_choice, whole_number
from lmms_flexselect.runtime.measure import now, peak_memory
from lmms_flexselect.video.key import VideoKey
from lmms_flexselect.video.reading import DECODERS


class LlavaSelectingModel(SelectingModel):
    """Called as upstream calls the original LLaVA-Video."""

    def generate(
        self,
        inputs: Tensor,
        images: list[LlavaFrames],
        attention_mask: Any = None,
        modalities: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """transformers' ``generate``, over a prompt shortened to the token budget.

        Parameters
        ----------
        inputs
            ``(1, tokens)`` int64 with `VIDEO_TOKEN` where the video belongs.
        images
            The one video.
        attention_mask, modalities
            As upstream passes them; not read, since nothing is padded and all is video.

        Returns
        -------
        Tensor
            ``(1, new)`` int64: new tokens alone, padding if the video could not be read.
        """
        (video,) = images
        if video.failure is not None:
            if self._options.strict or not isinstance(video.failure, VideoError):
                raise video.failure
            logger.warning(f"answered empty: {video.failure}")
            inputs = inputs[inputs != VIDEO_TOKEN][None]
        if not kwargs.get("do_sample"):
            kwargs = {name: value for name, value in kwargs.items() if name not in ("temperature", "top_p")}
        shown = [] if video.failure else [video]
        inputs_of = {"videos": [v.frames for v in shown], "video_keys": [v.key for v in shown]}
        return self._generated({"input_ids": inputs, **inputs_of}, [video.row], **kwargs)

    def __call__(
        self, input_ids: Tensor, labels: Tensor, images: list[LlavaFrames], modalities: Any = None
    ) -> dict[str, Tensor]:
        """How likely the labelled end of a text is, behind its beginning shortened to the token budget.

        What is kept is chosen by the beginning alone, so that it is the same for every continuation.

        Parameters
        ----------
        input_ids
            ``(1, tokens)`` int64 with `VIDEO_TOKEN` where the video belongs.
        labels
            Of the same shape, -100 for the beginning.
        images
            The one video.

        Returns
        -------
        dict
            ``loss``, the mean negative log-likelihood of the labelled tokens; ``logits`` ``(1, tokens, vocabulary)``,
            where row i is what token i was predicted from, so that upstream's comparison with `input_ids` holds;
            zero for the beginning.

        Raises
        ------
        VideoError
            If the video could not be read, also with ``strict=false``: there is no empty likelihood.
        """
        (video,) = images
        if video.failure is not None:
            raise video.failure
        context = int((labels[0] == -100).sum())
        continuation = input_ids[0, context:]
        start = now()
        with peak_memory() as peak:
            (selection,), selector_seconds = self._selected(
                {"input_ids": input_ids[:, :context], "videos": [video.frames], "video_keys": [video.key]}
            )
            predicted = self._family.continuation_logits(selection.prompt, continuation)
            end = now()
        counts = [{**prompt_counts(selection), "output_tokens": len(continuation)}]
        self._record(
            [video.row],
            [selection],
            counts,
            time_to_first_token_seconds=end - start,
            selector_seconds=selector_seconds,
            generate_seconds=end - start,
            peak_memory_gib=peak.gib,
        )
        beginning = predicted.new_zeros(context, predicted.shape[-1])
        logits = torch.cat([beginning, predicted])[None].to(input_ids.device)
        return {"loss": continuation_loss(predicted, continuation), "logits": logits}


upstream = upstream_llava_vid()
if TYPE_CHECKING:
    from lmms_eval.api.model import lmms as Upstream
else:
    Upstream = upstream.LlavaVid


class LlavaVidFlexSelect(FlexSelectPlugin, Upstream):
    """Upstream's class on a LLaVA-Video of our own; frames, prompts and the loops are upstream's."""

    upstream_name = _family_name = "llava_vid"
    _decoders = (*DECODERS, "image")
    _upstream_module = upstream
    _placeholders = (DEFAULT_IMAGE_TOKEN,)
    _answers_in_batches = None
    _overrides = frozenset({"load_video", "video_decode_backend", "_image_processor"})
    video_decode_backend: str
    max_frames_num: int
    fps: int
    force_sample: bool
    _without_effect = (
        "truncation",
        "truncate_context",
        "mm_resampler_type",
        "mm_spatial_pool_out_channels",
        "delay_load",
        "add_faster_video",
        "faster_token_stride",
    )
    _device_map_on_cpu = "auto"  # upstream's constructor takes every other value for a GPU's

    def _family(self, model: Any) -> LlavaVideo:
        return LlavaVideo(model)

    def _selecting_model(self, *arguments: Any) -> LlavaSelectingModel:
        self._image_processor = _PassOn
        # Upstream's loop calls `load_video` for this one only, and does not get through the others.
        self.video_decode_backend = "decord"
        return LlavaSelectingModel(*arguments)

    def reader(self) -> LlavaVideoReader:
        """See `FlexSelectPlugin.reader`."""
        return LlavaVideoReader(self.family, self.tokenizer, self.max_frames_num)

    # Construction -------------------------------------------------------------------------------------------------

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        given = dict(given)
        if (theirs := given.pop("torch_dtype", None)) is not None:
            theirs = str(theirs).removeprefix("torch.")
            if given.setdefault("dtype", theirs) != theirs:
                raise OptionError(f"dtype={given['dtype']} and torch_dtype={theirs}: give one of them")
        return {**super()._resolve(given), "torch_dtype": self.options.dtype}

    def _checkpoint_config(self, pretrained: str) -> LlavaVideoConfig:
        return LlavaVideoConfig.from_checkpoint(pretrained)

    def _checkpoint_arguments(self, config: Any) -> dict[str, Any]:
        return {name: getattr(config, name) for name in ("mm_spatial_pool_mode", "mm_spatial_pool_stride")}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        frames = whole_number("max_frames_num", upstream_args["max_frames_num"], at_least=1)
        whole_number("video_fps", upstream_args["video_fps"], at_least=1)
        # The llava package pools behind the projector whichever is given, and so does this one.
        check_choice("mm_resampler_location", upstream_args["mm_resampler_location"], ("before", "after"))
        check_pooling(upstream_args["mm_spatial_pool_mode"], upstream_args["mm_spatial_pool_stride"])
        check_choice("mm_newline_position", upstream_args["mm_newline_position"], ("grid",))
        check_choice("conv_template", upstream_args["conv_template"], conv_templates)
        self.options.check_frames(frames)

    def _loaders(self) -> dict[str, Any]:
        # AutoConfig is asked if a path has "yi" or "vicuna" in it, wherever that may be.
        own_config = SimpleNamespace(from_pretrained=LlavaVideoConfig.from_checkpoint)
        return {"load_pretrained_model": self._load_pretrained, "AutoConfig": own_config}

    def _load_pretrained(
        self,
        pretrained: str,
        model_base: Any,
        model_name: str,
        device_map: Any,
        torch_dtype: Any,
        attn_implementation: str,
        overwrite_config: dict[str, Any] | None = None,
    ) -> tuple[Any, Any, Any, int]:
        """Tokenizer, model, image processor and context length, as the llava package's loader returns them."""
        config = LlavaVideoConfig.from_checkpoint(pretrained)
        for name in ("mm_spatial_pool_mode", "mm_spatial_pool_stride"):
            setattr(config, name, (overwrite_config or {}).get(name, getattr(config, name)))
        family, tokenizer = load_llava_video(
            pretrained,
            getattr(torch, self.options.dtype),
            config,
            device_map="cpu" if self._device.type == "cpu" else device_map,
            attn_implementation=attn_implementation,
        )
        length = getattr(config, "tokenizer_model_max_length", None) or config.max_position_embeddings
        return tokenizer, family.model, _PassOn, length

    # Running ------------------------------------------------------------------------------------------------------

    def load_video(
        self, video_path: VisualSource, max_frames_num: int, fps: int, force_sample: bool = False
    ) -> tuple[LlavaFrames, str, float]:
        """Frames, their seconds as text, and the length in seconds; a failure is kept for `LlavaSelectingModel`."""
        start = time.perf_counter()
        how = (max_frames_num, fps, force_sample, self.backend, self.config.vision_config.image_size)
        try:
            frames, seconds, length = read_frames(video_path, *how, self._frames)
        except Exception as error:
            frames, seconds, length = LlavaFrames(failure=error), "", 0.0
            frames.row.error = str(error) if isinstance(error, VideoError) else None
        frames.row.seconds = time.perf_counter() - start
        return frames, seconds, length

    def _video_keys(self, paths: Paths) -> Iterable[VideoKey | None]:
        size = self.config.vision_config.image_size
        return [visuals_key(paths, self.max_frames_num, self.fps, self.force_sample, self.backend, size)]

    def _read_video(self, key: VideoKey) -> LlavaClip:
        return read_key(key)

    def _frame_count(self, frames: int, fps: float) -> int:
        return len(sample_frames(frames, fps, self.max_frames_num, self.fps, self.force_sample)[0])

    def _prepared(self, requests: list[Any]) -> list[Any]:
        return with_visuals(requests, _one_source)

    def _check_video(self, path: str) -> tuple[int, float]:
        return check_frames(path, self.options.video_timeout)


def _one_source(visuals: list[Any], question: str) -> list[VisualSource]:
    return [VisualSource.of(visuals, question)]


class _PassOn:
    """In place of the image processor: frames are made into pixels where they are read."""

    @staticmethod
    def preprocess(frames: LlavaFrames, **kwargs: Any) -> dict[str, LlavaFrames]:
        """Unchanged."""
        return {"pixel_values": frames}
