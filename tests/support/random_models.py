"""Tiny transformers models with random weights and inputs for them, made in code: no hub, no files."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM

HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 4, 4, 2, 96
VISION_START, VISION_END, IMAGE, VIDEO, PAD = 90, 91, 92, 93, 0
MERGE, TOKENS_PER_SECOND = 2, 2
_PATCH_VALUES = 3 * 2 * 14 * 14

# Of LLaVA-Video: unlike any default, so that a value which is not read from the configuration shows.
ROPE_THETA, PATCH, TOWER_HEADS, TOWER_LAYERS = 5000.0, 14, 2, 3

DECODERS = ("qwen2", "llama", "qwen3", "qwen2_5_vl")

# A prompt is a list of parts: a number of text tokens, or ("video" | "image", (time, rows, columns)): in merged tokens
# for Qwen2.5-VL; frames, height and width in pixels for LLaVA-Video.
Grid = tuple[int, int, int]
Part = int | tuple[str, Grid]


def decoder(kind: str, seed: int = 0, attention: str = "sdpa") -> Any:
    """The text model of one family, float32; a new one at every call."""
    if kind == "qwen2_5_vl":
        return qwen2_5_vl(seed, attention).model.language_model
    return copy.deepcopy(_decoder(kind, seed, attention))


def qwen2_5_vl(seed: int = 0, attention: str = "sdpa") -> Any:
    """A whole `Qwen2_5_VLForConditionalGeneration`, float32, which never ends its answer; a new one at every call."""
    return copy.deepcopy(_qwen2_5_vl(seed, attention))


def llava_video(
    seed: int = 0, attention: str = "sdpa", image_size: int = 70, pooling: str = "bilinear", stride: int = 2
) -> Any:
    """A whole `LlavaVideoForCausalLM`, float32, which never ends its answer; a new one at every call.

    A frame of 70 pixels is 5x5 patches. Bilinear pooling makes 3x3 of them, which no mean of fours does; averaging
    makes 2x2, and leaves a row and a column out.
    """
    return copy.deepcopy(_llava_video(seed, attention, image_size, pooling, stride))


@cache  # building costs a hundred times as much as copying
def _decoder(kind: str, seed: int, attention: str) -> Any:
    config, model = {
        "qwen2": (Qwen2Config, Qwen2Model),
        "llama": (LlamaConfig, LlamaModel),
        "qwen3": (Qwen3Config, Qwen3Model),
    }[kind]
    shapes = _text_shapes()
    # Qwen3 has a head_dim of its own; unlike hidden / heads, so that nothing can rely on that quotient.
    if kind == "qwen3":
        shapes["head_dim"] = 24
    return _filled(model(config(**shapes, attn_implementation=attention)), seed)


@cache
def _qwen2_5_vl(seed: int, attention: str) -> Any:
    config = Qwen2_5_VLConfig(
        text_config={
            **_text_shapes(),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": TOKENS_PER_SECOND,
            "spatial_merge_size": MERGE,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    model = _filled(Qwen2_5_VLForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.do_sample = False
    return model


@cache
def _llava_video(seed: int, attention: str, image_size: int, pooling: str, stride: int) -> Any:
    original = {
        **_text_shapes(),
        "rope_theta": ROPE_THETA,
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": pooling,
        "mm_spatial_pool_stride": stride,
        "tokenizer_model_max_length": 32,  # shorter than any prompt: nothing may be cut there
    }
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": TOWER_LAYERS,
        "num_attention_heads": TOWER_HEADS,
        "image_size": image_size,
        "patch_size": PATCH,
    }
    config = LlavaVideoConfig.from_original(original, tower)
    model = _filled(LlavaVideoForCausalLM._from_config(config, attn_implementation=attention), seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.do_sample = False
    return model


def video_inputs(
    rows: Sequence[Sequence[Part]], seconds: Sequence[float] | None = None, padding_side: str = "left", seed: int = 0
) -> dict[str, Tensor]:
    """What a `Qwen2_5_VLProcessor` returns for a batch of prompts, with random text and pixels.

    Vision start and end tokens are put around images and videos. A row's text and pixels depend on its own parts and
    `seed` alone, so a prompt is the same alone and in a batch.
    """
    ids, pixels, grids = [], {"video": [], "image": []}, {"video": [], "image": []}  # type: ignore[var-annotated]
    for row in rows:
        generator = torch.Generator().manual_seed(seed)
        pieces = []
        for part in row:
            if isinstance(part, int):
                pieces.append(torch.randint(1, VISION_START, (part,), generator=generator))
                continue
            kind, (time, height, width) = part
            placeholder = torch.full((time * height * width,), VIDEO if kind == "video" else IMAGE)
            pieces += [torch.tensor([VISION_START]), placeholder, torch.tensor([VISION_END])]
            grids[kind].append([time, height * MERGE, width * MERGE])
            pixels[kind].append(torch.randn(len(placeholder) * MERGE**2, _PATCH_VALUES, generator=generator))
        ids.append(torch.cat(pieces))
    inputs = _padded(ids, padding_side)
    if "mm_token_type_ids" in inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters:
        padded = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (padded == IMAGE) * 1 + (padded == VIDEO) * 2  # releases after 5.2 ask for it
    if grids["video"]:
        inputs["pixel_values_videos"] = torch.cat(pixels["video"])
        inputs["video_grid_thw"] = torch.tensor(grids["video"])
        if seconds is not None:
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
    if grids["image"]:
        inputs["pixel_values"] = torch.cat(pixels["image"])
        inputs["image_grid_thw"] = torch.tensor(grids["image"])
    return inputs


def llava_inputs(rows: Sequence[Sequence[Part]], padding_side: str = "left", seed: int = 0) -> dict[str, Any]:
    """What `LlavaVideo.prompts` reads of a batch; a row's random text and frames depend on it and `seed` alone."""
    ids, videos = [], []
    for row in rows:
        generator = torch.Generator().manual_seed(seed)
        pieces = []
        for part in row:
            if isinstance(part, int):
                pieces.append(torch.randint(1, VOCABULARY, (part,), generator=generator))
            else:
                pieces.append(torch.tensor([VIDEO_TOKEN]))
                videos.append(torch.randint(0, 256, (*part[1], 3), generator=generator, dtype=torch.uint8))
        ids.append(torch.cat(pieces))
    return {**_padded(ids, padding_side), "videos": videos}


def _padded(ids: list[Tensor], padding_side: str) -> dict[str, Tensor]:
    longest = max(len(row) for row in ids)
    pad = (lambda n: (n, 0)) if padding_side == "left" else (lambda n: (0, n))
    return {
        "input_ids": torch.stack([nn.functional.pad(row, pad(longest - len(row)), value=PAD) for row in ids]),
        "attention_mask": torch.stack(
            [nn.functional.pad(torch.ones_like(row), pad(longest - len(row))) for row in ids]
        ),
    }


def _text_shapes() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }


def _filled(model: Any, seed: int) -> Any:
    """Seeded weights, independent of how the installed transformers initialises.

    Much larger than its own: with those, attention is close to uniform and every ranking is decided by rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(0.1 * noise + (1.0 if "norm" in name or "ln_q" in name else 0.0))
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)
    return model.eval()
