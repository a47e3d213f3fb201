"""The needle Qwen3-VL: made of the real transformers classes, small enough to live in a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lmms_flexselect.families.mrope import VisionBlock, published_positions
from lmms_flexselect.families.qwen3_vl.timestamps import with_videos
from lmms_flexselect.needle.batches import TRAINING_UNITS, Batch, Chat, SelectorRecipe, messages
from lmms_flexselect.needle.decoder import INITIALIZER_RANGE, LAYERS, ROPE_THETA, answer_as_published, decoder_config
from lmms_flexselect.needle.tokenizer import MARKED_CHAT_TEMPLATE, MARKED_TOKENS, build_tokenizer
from lmms_flexselect.needle.videos import FRAMES_PER_UNIT, QUADRANTS, read_video

PATCH = 16
SIDE = 4 * PATCH  # 2x2 tokens a frame
PIXELS = SIDE * SIDE
_HALF = [0.5, 0.5, 0.5]


def build_processor() -> Qwen3VLProcessor:
    """The processor, fixed to 64x64 pixels: four visual tokens an image or temporal unit."""
    tokenizer = build_tokenizer(MARKED_TOKENS, words=["seconds"])
    tokenizer.chat_template = MARKED_CHAT_TEMPLATE
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=PATCH, image_mean=_HALF, image_std=_HALF),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=MARKED_CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> Qwen3VLConfig:
    """Decoder layers of width 128 over a vision tower of two blocks, the first of which reaches the decoder, too."""
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in MARKED_TOKENS}
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config={**decoder_config(tokenizer, layers), "head_dim": 32, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> Qwen3VLForConditionalGeneration:
    """A model with random float32 weights that ends its answers as Qwen3-VL does."""
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, layers))
    answer_as_published(model, tokenizer)
    return model


def patchify(frames: Tensor) -> Tensor:
    """What the video processor makes of units whose two frames are equal: (units, 3, 56, 56) -> (16 * units, 1536)."""
    large = resize(frames, [SIDE, SIDE], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels = (large.round().clamp(0, 255) / 255 - 0.5) / 0.5
    # Rows and columns split into (quadrant, patch, pixel); patches of one quadrant lie side by side.
    patches = pixels.view(len(frames), 3, 2, 2, PATCH, 2, 2, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return patches.unsqueeze(6).expand(*patches.shape[:6], FRAMES_PER_UNIT, -1, -1).reshape(-1, 3 * 2 * PATCH * PATCH)


class NeedleQwen3VL:
    """A `lmms_flexselect.needle.batches.Trainee`."""

    likeness = "architecture, processor and chat template of Qwen3-VL"
    selector_recipe = SelectorRecipe(
        {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2},
        layers=2,
        learning_rate=3e-3,
        steps=2500,
    )
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
        """See `Trainee.token_ids`; the video begins anywhere in the first ten minutes."""
        texts = self.processor.apply_chat_template([messages(chat) for chat in chats], tokenize=False)
        begin = 10 ** (2.8 * float(torch.rand(()))) - 1
        video = ([begin + unit + 0.25 for unit in range(units)], QUADRANTS)
        return torch.tensor(self.tokenizer([with_videos(self.processor, text, [video]) for text in texts]).input_ids)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See `Trainee.inputs`."""
        size, units = batch.frames.shape[:2]
        return {
            "input_ids": batch.ids,
            "attention_mask": torch.ones_like(batch.ids),
            "position_ids": self._positions(batch.ids, units),
            "pixel_values_videos": patchify(batch.frames.flatten(0, 1)),
            "video_grid_thw": torch.tensor([[units, 4, 4]] * size),
        }

    def answer(self, path: Path, question: str) -> str:
        """See `Trainee.answer`."""
        text = self.processor.apply_chat_template(
            messages([(question, "")]), tokenize=False, add_generation_prompt=True
        )
        frames = read_video(path)
        indices = list(range(len(frames)))
        metadata = {"fps": 2.0, "frames_indices": indices, "total_num_frames": len(frames)}
        inputs = self.processor(
            text=[text],
            videos=[frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            size={"shortest_edge": PIXELS * len(frames), "longest_edge": PIXELS * len(frames)},
            return_tensors="pt",
        )
        inputs["position_ids"] = self._positions(inputs["input_ids"], len(frames) // FRAMES_PER_UNIT)
        return str(self.tokenizer.decode(self.model(**inputs).logits[0, -1].argmax()))

    def _positions(self, ids: Tensor, units: int) -> Tensor:
        """Positions ``(3, batch, tokens)`` of prompts that hold one video at the same place."""
        columns = (ids[0] == self.processor.video_token_id).nonzero().view(units, -1)
        blocks = [VisionBlock(of_unit, (1, 2, 2), 1.0, is_video=True) for of_unit in columns]
        return published_positions(ids.shape[1], blocks)[:, None].expand(-1, len(ids), -1)
