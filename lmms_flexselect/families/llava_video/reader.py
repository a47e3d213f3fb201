"""Videos and questions for LLaVA-Video outside of lmms-eval's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.families.chatml import chatml, marked_token_ids
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, load_llava_video
from lmms_flexselect.families.llava_video.frames import read_llava_video


class LlavaVideoReader:
    """`frames` frames spread over the video, in LLaVA-Video's chat form."""

    tokenizer = None
    frames_per_unit = 1

    def __init__(self, family: LlavaVideo, words: Any, frames: int) -> None:
        self.family, self._words, self._frames = family, words, frames
        self._size = family.model.config.vision_config.image_size

    @classmethod
    def load(
        cls, pretrained: str, dtype: torch.dtype, frames: int, init: str | None, **kwargs: Any
    ) -> LlavaVideoReader:
        """`kwargs` go to transformers' ``from_pretrained``."""
        return cls(*load_llava_video(pretrained, dtype, **kwargs), frames)

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """See `Reader.of_frames`."""
        return self.inputs(frames, question, "")

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        """See `Reader.read`."""
        clip = read_llava_video(video, self._frames, force_sample=True, size=self._size)
        return self.inputs(clip.frames, question, answer)

    def inputs(self, frames: Tensor, question: str, answer: str) -> Mapping[str, Any]:
        """The same of frames ``(frames, height, width, 3)`` uint8."""
        chat = chatml([("user", f"<image>\n{question}"), ("assistant", answer or None)])
        ids = torch.tensor([marked_token_ids(chat, self._words, "<image>", VIDEO_TOKEN)])
        return {"input_ids": ids, "videos": [frames]}
