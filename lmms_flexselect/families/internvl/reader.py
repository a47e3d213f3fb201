"""Videos and questions for InternVL outside of lmms-eval's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.lite import SelectorNetwork
from lmms_flexselect.families.internvl.processor import FrameSegments, frame_pixels, load_processor, video_pixels
from lmms_flexselect.families.internvl.prompt import END, START, SYSTEM_MESSAGES, VIDEO_MARK, spell_out


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
        tokenizer = processor.tokenizer if init is None else SelectorNetwork.load_tokenizer(init)
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
