"""Videos and questions outside of lmms-eval's loop, read and asked as `llava_hf` does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from flexselect_llava_onevision.family import LlavaOnevision
from lmms_flexselect.loading import checkpoint_config, load_whole
from lmms_flexselect.video.reading import VideoFile, with_video


def read_frames(path: str, frames: int) -> tuple[Tensor, dict[str, Any]]:
    """``(frames, height, width, 3)`` uint8 spread over a video, and what is known of it; raises `VideoError`."""

    def work(video: VideoFile) -> tuple[Tensor, dict[str, Any]]:
        indices = video.shown(np.linspace(0, video.frames - 1, frames, dtype=int).tolist())
        return video.read(indices), {"fps": video.fps, "frames_indices": indices, "video_backend": video.decoder}

    return with_video(path, work)


class OnevisionReader:
    """See `lmms_flexselect.families.reader.Reader`."""

    tokenizer = None
    frames_per_unit = 1

    def __init__(self, family: LlavaOnevision, processor: Any, frames: int) -> None:
        self.family, self._processor, self._frames = family, processor, frames

    @classmethod
    def load(cls, pretrained: str, dtype: torch.dtype, frames: int, init: str | None, **kwargs: Any) -> Any:
        checkpoint_config(pretrained, "llava_onevision")
        model = load_whole(LlavaOnevisionForConditionalGeneration, pretrained, dtype, **kwargs).eval()
        return cls(LlavaOnevision(model), AutoProcessor.from_pretrained(pretrained), frames)

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        return self._inputs(read_frames(video, self._frames)[0], question, answer)

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        return self._inputs(frames, question, "")

    def _inputs(self, frames: Tensor, question: str, answer: str) -> Mapping[str, Any]:
        chat = [{"role": "user", "content": f"<video>\n{question}"}]
        chat += [{"role": "assistant", "content": answer}] if answer else []
        text = self._processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=not answer)
        return self._processor(videos=[frames.numpy()], text=text, return_tensors="pt")
