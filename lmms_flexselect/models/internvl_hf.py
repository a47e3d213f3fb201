"""``--model internvl_hf_flexselect`` and ``internvl2_flexselect``: upstream's InternVL with visual tokens selected."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from lmms_eval.models.chat import internvl_hf as upstream
from lmms_eval.models.chat.internvl_hf import InternVLHf

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl import InternVL
from lmms_flexselect.families.internvl_checkpoint import load_model
from lmms_flexselect.families.internvl_config import IMAGE_TOKEN, read_config
from lmms_flexselect.families.internvl_processor import FrameSegments, load_processor
from lmms_flexselect.families.internvl_prompt import END, START
from lmms_flexselect.families.internvl_tokenizer import stop_token_ids
from lmms_flexselect.lite.checkpoint import SelectorConfig, load_selector_tokenizer, read_selector_config
from lmms_flexselect.models._internvl_processor import InternVLMedia, PromptForm, SmallFrames
from lmms_flexselect.models._internvl_selecting_model import InternVLSelectingModel
from lmms_flexselect.models._plugin import FlexSelectPlugin
from lmms_flexselect.models._preflight import Paths
from lmms_flexselect.options import check_choice, whole_number
from lmms_flexselect.training.readers import InternVLReader
from lmms_flexselect.video_key import VideoKey


class InternVLHfFlexSelect(FlexSelectPlugin, InternVLHf):
    """Chat class, for checkpoints in transformers' layout and in InternVL2.5's own."""

    is_simple = False
    upstream_name = "internvl_hf"
    _family_name = "internvl_hf"
    _upstream_module = upstream
    _whole_steps = False
    _selector_tokenizer: Any = None
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

    def _read_with(self, selector: SelectorConfig) -> dict[str, Any]:
        # The published selector's offset is one of prompts without labels; see `InternVL.shift_window`.
        labels = {} if selector.trained_here else {"frame_labels": "bare"}
        return super()._read_with(selector) | labels

    def _load_selector(self, family: InternVL) -> Any:
        path = str(self.options.selector_path)
        self._selector_tokenizer = load_selector_tokenizer(path)
        start, end, visual = self._selector_tokenizer.convert_tokens_to_ids([START, END, IMAGE_TOKEN])
        family.selector_mark_ids = (visual, start, end)
        family.shift_window = not read_selector_config(path).trained_here
        if family.shift_window and self.options.frame_labels != "bare":
            raise OptionError(
                f"frame_labels={self.options.frame_labels}: the published selector was trained on bare frames; "
                "give frame_labels=bare"
            )
        return super()._load_selector(family)

    def _selecting_model(self, *arguments: Any) -> InternVLSelectingModel:
        self._bare_processor = self.processor
        self._segments = FrameSegments(self.num_frames, self.fps, self._whole_steps)
        self.processor = InternVLMedia(
            self.processor,
            PromptForm(self.options.frame_labels, self.options.system_message, self._model.config.image_seq_length),
            self._segments,
            self.options.strict,
            getattr(torch, self.options.dtype),
            self._selector_tokenizer,
            self._frames,
            self._has_video,
            self.backend,
        )
        return InternVLSelectingModel(self.processor, *arguments)

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
            self._selector_tokenizer,
            self.options.system_message,
            self.options.frame_labels,
        )

    # Construction -------------------------------------------------------------------------------------------------

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        wordless = {name: None for name in ("fps", "num_frames") if str(given.get(name, "")).lower() == "none"}
        return super()._resolve({**given, **wordless})

    def _config(self, pretrained: str) -> Any:
        return read_config(pretrained)

    def _trained_with(self, config: Any) -> dict[str, Any]:
        return {"system_message": "none" if config.original_template is None else "internvl2_5"}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        frames, fps = upstream_args["num_frames"], upstream_args["fps"]
        if frames is not None:
            self.options.check_frames(whole_number("num_frames", frames, at_least=1))
        elif fps is None:
            raise OptionError("num_frames=none: give fps, the frames a second to read instead")
        elif isinstance(fps, (bool, str)) or not fps > 0:
            raise OptionError(f"fps={fps}: must be greater than 0")
        if whole_number("batch_size", int(upstream_args["batch_size"]), at_least=1) != 1:
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
