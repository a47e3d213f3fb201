"""``--model internvl_hf_flexselect`` and ``internvl2_flexselect``: upstream's InternVL with visual tokens selected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from lmms_eval.models.chat import internvl_hf as upstream
from lmms_eval.models.chat.internvl_hf import InternVLHf

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN, read_config
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.media import InternVLMedia, PromptForm, SmallFrames
from lmms_flexselect.families.internvl.options import Options
from lmms_flexselect.families.internvl.processor import FrameSegments, load_processor
from lmms_flexselect.families.internvl.prompt import END, START, VIDEO_MARK
from lmms_flexselect.families.internvl.reader import InternVLReader
from lmms_flexselect.families.internvl.tokenizer import stop_token_ids
from lmms_flexselect.lite.checkpoint import SelectorConfig, read_selector_config
from lmms_flexselect.models.arguments import check_fps
from lmms_flexselect.models.plugin import FlexSelectPlugin
from lmms_flexselect.models.requests import Paths
from lmms_flexselect.models.selecting_model import BatchSelectingModel
from lmms_flexselect.options import check_choice, whole_number
from lmms_flexselect.video.key import VideoKey

_SELECTORS = ("selector_ids", "selector_video", "selector_frame")
_OURS = ("token_video", "token_frame", *_SELECTORS, "video_keys", "pixels_omitted")


class InternVLSelectingModel(BatchSelectingModel):
    """Reads what `InternVLMedia` makes."""

    _inputs = frozenset({"input_ids", "attention_mask", "pixel_values", *_OURS})
    _visual_token = "image_token_id"

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """No video in it."""
        return bool((inputs["token_video"] < 0).all())

    def _upstreams(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in inputs.items() if name not in _OURS}


class InternVLHfFlexSelect(FlexSelectPlugin, InternVLHf):
    """Chat class, for checkpoints in transformers' layout and in InternVL2.5's own."""

    _overrides = frozenset({"processor", "eot_token_id"})
    options: Options
    upstream_name = "internvl_hf"
    _family_name = "internvl_hf"
    _upstream_module = upstream
    _whole_steps = False
    _placeholders = (VIDEO_MARK, IMAGE_TOKEN)
    processor: Any
    num_frames: int | None
    fps: float | None

    @property
    def eot_token_id(self) -> Any:
        """All tokens that end an answer. Upstream's choice, the tokenizer's, is never said by an InternLM2 decoder."""
        return stop_token_ids(self.tokenizer, self._model.generation_config)

    def _family(self, model: Any) -> InternVL:
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        return InternVL(model, (start, end), self.options.image_marks)

    def _selector_options(self, selector: SelectorConfig) -> dict[str, Any]:
        # The published selector's offset is one of prompts without labels; see `InternVL.shift_window`.
        labels = {} if selector.trained_here else {"frame_labels": "bare"}
        return super()._selector_options(selector) | labels

    def _selecting_model(self, *arguments: Any) -> InternVLSelectingModel:
        self._bare_processor = self.processor
        self._segments = FrameSegments(self.num_frames, self.fps, self._whole_steps)
        self.processor = InternVLMedia(
            self.processor,
            PromptForm(self.options.frame_labels, self.options.system_message, self._model.config.image_seq_length),
            self._segments,
            self.options.strict,
            getattr(torch, self.options.dtype),
            self.family.selector_tokenizer,
            self._frames,
            self._has_video,
            self.backend,
        )
        return InternVLSelectingModel(*arguments)

    def _video_keys(self, paths: Paths) -> Iterable[VideoKey | None]:
        return [self.processor.key(path) for path in paths]

    def _read_video(self, key: VideoKey) -> SmallFrames:
        return self.processor.read(key)

    def _needs_frames(self, key: VideoKey) -> bool:
        return not self.processor.knows(key)

    def _frame_count(self, frames: int, fps: float) -> int:
        return self._segments.count(frames, fps)

    def reader(self) -> InternVLReader:
        """See `FlexSelectPlugin.reader`."""
        return InternVLReader(
            self.family,
            self._bare_processor,
            FrameSegments(self.num_frames, self.fps, self._whole_steps),
            getattr(torch, self.options.dtype),
            self.family.selector_tokenizer,
            self.options.system_message,
            self.options.frame_labels,
        )

    # Construction -------------------------------------------------------------------------------------------------

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        # Upstream takes None, other than its signature says.
        wordless = {"num_frames": None} if str(given.get("num_frames", "")).lower() == "none" else {}
        self._revision = str(given["revision"]) if "revision" in given else None
        return super()._resolve({**given, **wordless})

    def _checkpoint_config(self, pretrained: str) -> Any:
        return read_config(pretrained, self._revision)

    def _checkpoint_arguments(self, config: Any) -> dict[str, Any]:
        return {"system_message": "none" if config.original_template is None else "internvl2_5"}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        labels, path = self.options.frame_labels, self.options.selector_path
        if path is not None and labels != "bare" and not read_selector_config(path).trained_here:
            raise OptionError(
                f"frame_labels={labels}: the published selector was trained on bare frames; give frame_labels=bare"
            )
        frames, fps = upstream_args["num_frames"], upstream_args["fps"]
        if frames is not None:
            self.options.check_frames(whole_number("num_frames", frames, at_least=1))
        elif fps is None:
            raise OptionError("num_frames=none: give fps, the frames a second to read instead")
        check_fps(fps, "")
        fewest = whole_number("min_patches", upstream_args["min_patches"], at_least=1)
        if fewest > whole_number("max_patches", upstream_args["max_patches"], at_least=1):
            raise OptionError(f"min_patches={fewest} exceeds max_patches={upstream_args['max_patches']}; give both")
        if upstream_args["batch_size"] != 1:
            raise OptionError(f"batch_size={upstream_args['batch_size']}: upstream's internvl_hf reads 1 at a time")

    def _loaders(self) -> dict[str, Any]:
        return {
            "InternVLForConditionalGeneration": SimpleNamespace(from_pretrained=self._load_model),
            "AutoProcessor": SimpleNamespace(from_pretrained=self._load_own),
        }

    def _load_model(self, pretrained: str, **kwargs: Any) -> Any:
        wanted = ("revision", "attn_implementation", "device_map")
        return load_model(pretrained, getattr(torch, self.options.dtype), **{name: kwargs[name] for name in wanted})

    def _load_own(self, pretrained: str, revision: str | None = None, **kwargs: Any) -> Any:
        config = self._model.config
        size = config.vision_config.image_size
        original = config.original_template is not None
        return load_processor(pretrained, original, size[0] if isinstance(size, (list, tuple)) else size, revision)


class InternVL2FlexSelect(InternVLHfFlexSelect):
    """The same by the name, the prompts and the arguments of upstream's `internvl2`."""

    upstream_name = "internvl2"
    _whole_steps = True

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        given = dict(given)
        check_choice("modality", given.pop("modality", "video"), ("video",))
        given.pop("num_layers", None)  # upstream's, for a device map that transformers finds out by itself
        for theirs in ("num_frame", "num_segments"):
            if theirs in given:
                frames = given.pop(theirs)
                if given.setdefault("num_frames", frames) != frames:
                    raise OptionError(f"{theirs}={frames} and num_frames={given['num_frames']}: give one of them")
        return super()._resolve(given)
