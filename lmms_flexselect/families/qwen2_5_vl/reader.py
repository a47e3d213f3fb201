"""Videos and questions for Qwen2.5-VL outside of lmms-eval's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from lmms_flexselect.families.qwen2_5_vl.family import Qwen2_5_VL
from lmms_flexselect.loading import checkpoint_config, load_whole, raw_config
from lmms_flexselect.presets import preset
from lmms_flexselect.video import FrameSampling, read_video, resize_frames


class Qwen2_5_VLReader:
    """Twice `frames` raw frames, at most two a second, in the resolution of the checkpoint's preset."""

    tokenizer = None
    frames_per_unit = 2

    def __init__(
        self, family: Qwen2_5_VL, processor: Any, sampling: FrameSampling, pixels: Mapping[str, Any] | None = None
    ) -> None:
        self.family, self._processor, self._sampling, self._pixels = family, processor, sampling, dict(pixels or {})

    @classmethod
    def load(
        cls, pretrained: str, dtype: torch.dtype, frames: int, init: str | None, **kwargs: Any
    ) -> Qwen2_5_VLReader:
        """`kwargs` go to transformers' ``from_pretrained``."""
        config = checkpoint_config(pretrained, "qwen2_5_vl")
        model = load_whole(Qwen2_5_VLForConditionalGeneration, pretrained, dtype, **kwargs).eval()
        processor = AutoProcessor.from_pretrained(pretrained)
        text = config.get_text_config()
        own = getattr(config, "flexselect", None)
        fill = preset("qwen2_5_vl", pretrained, own, text.num_hidden_layers, raw_config(pretrained))
        pixels: dict[str, Any] = {name: fill[name] for name in ("min_pixels", "max_pixels") if name in fill}
        return cls(Qwen2_5_VL(model), processor, FrameSampling(2 * frames, fill.get("fps")), pixels)

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """See `Reader.of_frames`; two frames a second."""
        count = len(frames)
        resized = resize_frames(frames.permute(0, 3, 1, 2), self._pixels, count)
        indices = list(range(count))
        metadata = {"fps": 2.0, "frames_indices": indices, "total_num_frames": count, "video_backend": "decord"}
        return self.inputs(resized, metadata, question, "")

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        """See `Reader.read`."""
        seen = read_video({"video": video, **self._pixels}, self._sampling)
        return self.inputs(seen.frames, seen.metadata, question, answer)

    def inputs(self, frames: Tensor, metadata: Mapping[str, Any], question: str, answer: str) -> Mapping[str, Any]:
        """The same of frames ``(frames, 3, height, width)`` that have the right size already."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer)
        return self._processor(
            text=[text], videos=[frames], video_metadata=[metadata], do_resize=False, return_tensors="pt"
        )
