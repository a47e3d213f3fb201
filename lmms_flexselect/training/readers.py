"""From a sample of the training data to what a family reads: frames, and a chat with the question and its answer.

A reader has ``family``, ``tokenizer`` (the selector's own, where it needs one), ``read(video, question, answer)``,
and ``of_frames(frames, question)`` for frames that are in no file; ``load`` makes one of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from lmms_flexselect.families.chatml import chatml, marked_token_ids
from lmms_flexselect.families.internvl import InternVL
from lmms_flexselect.families.internvl_checkpoint import load_model
from lmms_flexselect.families.internvl_config import IMAGE_TOKEN
from lmms_flexselect.families.internvl_processor import FrameSegments, frame_pixels, load_processor, video_pixels
from lmms_flexselect.families.internvl_prompt import END, START, SYSTEM_MESSAGES, VIDEO_MARK, spell_out
from lmms_flexselect.families.llava_video import VIDEO_TOKEN, LlavaVideo, load_llava_video
from lmms_flexselect.families.llava_video_frames import read_llava_video
from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
from lmms_flexselect.families.qwen2_5_vl_frames import FrameSampling, read_video, resize_frames
from lmms_flexselect.lite.checkpoint import load_selector_tokenizer
from lmms_flexselect.loading import checkpoint_config, load_whole
from lmms_flexselect.presets import preset


class Reader(Protocol):
    """See the module's docstring."""

    family: Any
    tokenizer: Any
    frames_per_unit: int

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        """What the family's `prompts` takes, a batch of one; an empty answer is one still to be given.

        Raises
        ------
        VideoError
            If the video cannot be read; the message names the file.
        """
        ...

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """The same of frames ``(units * frames_per_unit, height, width, 3)`` uint8 of any size, unanswered."""
        ...


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
        fill = preset("qwen2_5_vl", pretrained, getattr(config, "flexselect", None), text.num_hidden_layers)
        pixels: dict[str, Any] = {name: fill[name] for name in ("min_pixels", "max_pixels") if name in fill}
        return cls(Qwen2_5_VL(model), processor, FrameSampling(2 * frames, fill.get("fps")), pixels)

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """See `Reader.of_frames`; two frames a second."""
        count = len(frames)
        resized = resize_frames(frames.permute(0, 3, 1, 2), self._pixels, count)
        indices = list(range(count))
        metadata = {"fps": 2.0, "frames_indices": indices, "total_num_frames": count, "video_backend": "images"}
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


class InternVLReader:
    """Frames in the middle of as many segments; without labels between them, unless told to, as the reference trained.

    The selector reads the prompt by its own tokenizer: that of the decoder it starts from, else the model's.
    """

    frames_per_unit = 1

    def __init__(
        self,
        family: InternVL,
        processor: Any,
        segments: FrameSegments,
        dtype: torch.dtype,
        tokenizer: Any = None,
        system_message: str = "none",
        frame_labels: str = "bare",
    ) -> None:
        self.family, self._processor, self._segments, self._dtype = family, processor, segments, dtype
        self.tokenizer = processor.tokenizer if tokenizer is None else tokenizer
        self._system, self._labels = SYSTEM_MESSAGES[system_message], frame_labels

    @classmethod
    def load(cls, pretrained: str, dtype: torch.dtype, frames: int, init: str | None, **kwargs: Any) -> InternVLReader:
        """`kwargs` go to transformers' ``from_pretrained``."""
        model = load_model(pretrained, dtype, **kwargs).eval()
        size = model.config.vision_config.image_size
        original = getattr(model.config, "original_template", None) is not None
        processor = load_processor(pretrained, original, size if isinstance(size, int) else size[0], None)
        tokenizer = processor.tokenizer if init is None else load_selector_tokenizer(init)
        family = InternVL(model, tuple(processor.tokenizer.convert_tokens_to_ids([START, END])))
        family.selector_mark_ids = tuple(tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, START, END]))
        system = "internvl2_5" if original else "none"
        return cls(family, processor, FrameSegments(frames), dtype, tokenizer, system)

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """See `Reader.of_frames`."""
        return self.inputs(frame_pixels(self._processor, frames).to(self._dtype), question, "")

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        """See `Reader.read`."""
        return self.inputs(video_pixels(self._processor, video, self._segments, self._dtype), question, answer)

    def inputs(self, pixels: Tensor, question: str, answer: str) -> Mapping[str, Any]:
        """The same of what the tower reads."""
        text = chatml([("user", f"{VIDEO_MARK}\n{question}"), ("assistant", answer or None)], self._system)
        return {"pixel_values": pixels, **self.spelled(text, len(pixels))}

    def spelled(self, text: str, frames: int) -> dict[str, Tensor]:
        """Token ids of a prompt, by the model's tokenizer and by the selector's."""
        made: dict[str, Tensor] = {}
        per_tile = self.family.model.config.image_seq_length
        for ids, prefix, tokenizer in (
            ("input_ids", "token_", self._processor.tokenizer),
            ("selector_ids", "selector_", self.tokenizer),
        ):
            tokens = spell_out(text, [], [frames], tokenizer, per_tile, self._labels)
            made |= {ids: tokens.ids, f"{prefix}video": tokens.video, f"{prefix}frame": tokens.frame}
        return {name: values[None] for name, values in made.items()}


READERS: dict[str, Any] = {
    "llava_vid": LlavaVideoReader.load,
    "qwen2_5_vl": Qwen2_5_VLReader.load,
    "internvl_hf": InternVLReader.load,
}
