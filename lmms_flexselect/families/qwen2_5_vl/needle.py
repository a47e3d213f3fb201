"""The needle Qwen2.5-VL: built from nothing of the real transformers classes, and what it reads in training.

Everything a published checkpoint brings along is made here without a hub: config, tokenizer, chat template, image
and video processor, generation config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lmms_flexselect.families import mrope
from lmms_flexselect.families.mrope import VisionBlock
from lmms_flexselect.needle.batches import TRAINING_UNITS, Batch, Chat, SelectorRecipe, messages
from lmms_flexselect.needle.decoder import INITIALIZER_RANGE, LAYERS, ROPE_THETA, answer_as_published, decoder_config
from lmms_flexselect.needle.tokenizer import MARKED_CHAT_TEMPLATE, MARKED_TOKENS, build_tokenizer
from lmms_flexselect.needle.videos import FRAME_SIZE, FRAMES_PER_UNIT, QUADRANTS, read_video

_PATCH = 14

PIXELS = FRAME_SIZE * FRAME_SIZE


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor, fixed to 56x56 pixels: four visual tokens an image or temporal unit."""
    tokenizer = build_tokenizer(MARKED_TOKENS)
    tokenizer.chat_template = MARKED_CHAT_TEMPLATE
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=PIXELS, max_pixels=PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(min_pixels=PIXELS, max_pixels=PIXELS),
        chat_template=MARKED_CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> Qwen2_5_VLConfig:
    """Decoder layers of width 128 over a vision tower of two; with six 1.7 million parameters."""
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in MARKED_TOKENS}
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [4, 6, 6]}
    return Qwen2_5_VLConfig(
        text_config={**decoder_config(tokenizer, layers), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1],
            "tokens_per_second": 2,
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random float32 weights that ends its answers as Qwen2.5-VL does."""
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, layers))
    answer_as_published(model, tokenizer)
    return model


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
    # It is read at its second layer; two layers of the teacher's own would be more than a quarter of it.
    selector_recipe = SelectorRecipe(
        {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2},
        layers=2,
        learning_rate=3e-3,
        steps=2500,
    )

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
