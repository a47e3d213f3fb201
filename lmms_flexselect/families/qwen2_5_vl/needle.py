"""The needle Qwen2.5-VL: what its processor would give for a training batch; asked and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLProcessor

from lmms_flexselect.families import mrope
from lmms_flexselect.families.mrope import VisionBlock
from lmms_flexselect.families.qwen2_5_vl.needle_model import PIXELS, build_model, build_processor
from lmms_flexselect.needle.batches import TRAINING_UNITS, Batch, Chat
from lmms_flexselect.needle.decoder import LAYERS
from lmms_flexselect.needle.videos import FRAMES_PER_UNIT, QUADRANTS, read_video

_PATCH = 14


def messages(chat: Chat) -> list[dict[str, object]]:
    """A chat as the chat template wants it, the video in its first turn; an empty answer is one still to be given."""
    turns: list[dict[str, object]] = []
    for question, answer in chat:
        content: list[dict[str, str]] = [] if turns else [{"type": "video"}]
        content.append({"type": "text", "text": question})
        turns.append({"role": "user", "content": content})
        if answer:
            turns.append({"role": "assistant", "content": answer})
    return turns


def patchify(frames: Tensor, processor: Qwen2_5_VLProcessor) -> Tensor:
    """What the video processor makes of units whose two frames are equal: (units, 3, 56, 56) -> (16 * units, 1176)."""
    video = processor.video_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (video.image_mean, video.image_std))
    pixels = (frames * video.rescale_factor - mean) / std
    # Rows and columns split into (quadrant, patch, pixel); patches of one quadrant lie side by side.
    patches = pixels.view(len(frames), 3, 2, 2, _PATCH, 2, 2, _PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return patches.unsqueeze(6).expand(*patches.shape[:6], FRAMES_PER_UNIT, -1, -1).reshape(-1, 3 * 2 * _PATCH * _PATCH)


def published_positions(ids: Tensor, video_token_id: int, step: float = 2.0) -> Tensor:
    """Positions (3, batch, tokens) by Qwen2.5-VL's published rule, for prompts that hold one video at the same place.

    `step` is the temporal distance of two units: tokens per second times seconds per unit, 2 x 1 s in the benchmark.
    """
    columns = (ids[0] == video_token_id).nonzero().squeeze(-1)
    block = VisionBlock(columns, (len(columns) // QUADRANTS, 2, 2), step, is_video=True)
    return mrope.published_positions(ids.shape[1], [block])[:, None].expand(-1, len(ids), -1)


class NeedleQwen2_5_VL:
    """A `lmms_flexselect.needle.batches.Trainee`."""

    title = "Qwen2.5-VL"
    likeness = "architecture, processor and chat template of Qwen2.5-VL"

    # The reference layer is the one whose selection answered best at 512 units (layers 0 to 5: .89, .95, .46, .50,
    # .90, .94).
    preset: dict[str, Any] = {  # noqa: RUF012
        "reference_layer": 1,
        "token_budget": 64,
        "max_frames_per_set": TRAINING_UNITS,
        "dtype": "float32",
        "min_pixels": PIXELS,
        "max_pixels": PIXELS,
        "max_num_frames": 2048,
    }

    def __init__(self, layers: int = LAYERS) -> None:
        self.processor = build_processor()
        self.tokenizer = self.processor.tokenizer
        self.model = build_model(self.tokenizer, layers)

    def token_ids(self, chats: list[Chat], units: int) -> Tensor:
        """See `Trainee.token_ids`."""
        texts = self.processor.apply_chat_template([messages(chat) for chat in chats], tokenize=False)
        placeholder = self.processor.video_token
        texts = [text.replace(placeholder, placeholder * QUADRANTS * units) for text in texts]
        return torch.tensor(self.tokenizer(texts).input_ids)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See `Trainee.inputs`."""
        size, units = batch.frames.shape[:2]
        return {
            "input_ids": batch.ids,
            "attention_mask": torch.ones_like(batch.ids),
            "position_ids": published_positions(batch.ids, self.processor.video_token_id, batch.step),
            "pixel_values_videos": patchify(batch.frames.flatten(0, 1), self.processor),
            "video_grid_thw": torch.tensor([[units, 4, 4]] * size),
        }

    def answer(self, path: Path, question: str) -> str:
        """See `Trainee.answer`."""
        text = self.processor.apply_chat_template(
            messages([(question, "")]), tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(text=[text], videos=[read_video(path)], return_tensors="pt")
        inputs["position_ids"] = published_positions(inputs["input_ids"], self.processor.video_token_id)
        return str(self.tokenizer.decode(self.model(**inputs).logits[0, -1].argmax()))

    def save(self, folder: Path) -> None:
        """See `Trainee.save`."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
