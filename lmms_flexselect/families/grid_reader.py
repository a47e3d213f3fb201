"""Videos and questions outside of lmms-eval's loop, for families whose processor cuts frames into a grid of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoProcessor

from lmms_flexselect.families.grid_frames import FrameSampling, read_video, resize_frames
from lmms_flexselect.families.mrope_family import MropeFamily
from lmms_flexselect.loading import checkpoint_config, load_whole, raw_config
from lmms_flexselect.presets import preset


class GridReader:
    """Pairs of frames, at most two frames a second, in the resolution of the checkpoint's preset."""

    name: ClassVar[str]
    tokenizer = None
    frames_per_unit = 2

    def __init__(
        self, family: MropeFamily, processor: Any, sampling: FrameSampling, pixels: Mapping[str, Any] | None = None
    ) -> None:
        self.family, self._processor, self._sampling, self._pixels = family, processor, sampling, dict(pixels or {})
        self._patch = int(processor.video_processor.patch_size)

    @classmethod
    def model_classes(cls) -> Mapping[str, Any]:
        """transformers' classes by the checkpoint's ``model_type``."""
        raise NotImplementedError

    @classmethod
    def make_family(cls, model: Any, tokenizer: Any) -> MropeFamily:
        """How a loaded model is read."""
        raise NotImplementedError

    @classmethod
    def load(cls, pretrained: str, dtype: torch.dtype, frames: int, init: str | None, **kwargs: Any) -> GridReader:
        """Reads twice `frames` frames with a checkpoint; `kwargs` go to transformers' ``from_pretrained``."""
        model_classes = cls.model_classes()
        config = checkpoint_config(pretrained, *model_classes)
        model = load_whole(model_classes[config.model_type], pretrained, dtype, **kwargs).eval()
        processor = AutoProcessor.from_pretrained(pretrained)
        text = config.get_text_config()
        own = getattr(config, "flexselect", None)
        fill = preset(cls.name, pretrained, own, text.num_hidden_layers, raw_config(pretrained))
        pixels: dict[str, Any] = {name: fill[name] for name in ("min_pixels", "max_pixels") if name in fill}
        sampling = FrameSampling(cls.frames_per_unit * frames, fill.get("fps"))
        return cls(cls.make_family(model, processor.tokenizer), processor, sampling, pixels)

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """See `Reader.of_frames`; two frames a second."""
        count = len(frames)
        resized = resize_frames(frames.permute(0, 3, 1, 2), self._pixels, count, self._patch)
        indices = list(range(count))
        metadata = {"fps": 2.0, "frames_indices": indices, "total_num_frames": count, "video_backend": "images"}
        return self.inputs(resized, metadata, question, "")

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        """See `Reader.read`."""
        seen = read_video({"video": video, **self._pixels}, self._sampling, self._patch)
        return self.inputs(seen.frames, seen.metadata, question, answer)

    def inputs(self, frames: Tensor, metadata: Mapping[str, Any], question: str, answer: str) -> Mapping[str, Any]:
        """The same of frames ``(frames, 3, height, width)`` that have the right size already."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer)
        return self._processor(
            text=[text],
            videos=[frames],
            video_metadata=[metadata],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
