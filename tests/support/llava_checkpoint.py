"""A small LLaVA-Video checkpoint as the original ones are published: written file by file, by no class of ours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmms_flexselect.needle.tokenizer import build_tokenizer

TOWER: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
_VISION = "model.vision_tower.vision_tower.vision_model"


def original_config(**overrides: Any) -> dict[str, Any]:
    """A ``config.json`` in the words of the published ones; `vision_config`, which they lack, is the small tower's."""
    tokenizer = _tokenizer()
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return {
        "_name_or_path": "/somewhere/on/a/cluster",
        "architectures": ["LlavaQwenForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": pad,
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_size": 64,
        "image_aspect_ratio": "anyres_max_9",
        "image_crop_resolution": None,
        "image_grid_pinpoints": [[384, 384], [384, 768], [768, 384]],
        "image_split_resolution": None,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "mm_hidden_size": TOWER["hidden_size"],
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_vision_tower_lr": 2e-06,
        "model_type": "llava_qwen",
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "pos_skipping_range": 4096,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 32768,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0.dev0",
        "use_cache": True,
        "use_mm_proj": True,
        "use_pos_skipping": False,
        "use_sliding_window": False,
        "vision_config": TOWER,
        "vision_tower_pretrained": None,
        "vocab_size": len(tokenizer),
        **overrides,
    }


def original_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of such a checkpoint, by its original name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (config["vocab_size"], hidden),
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "model.image_newline": (hidden,),
    }
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys)):
            shapes |= {f"{layer}.self_attn.{name}.weight": (rows, hidden), f"{layer}.self_attn.{name}.bias": (rows,)}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes |= {f"{layer}.mlp.{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)

    tower = config["vision_config"] or TOWER
    width, wide, patch = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    shapes |= _linear("model.mm_projector.0", width, hidden) | _linear("model.mm_projector.2", hidden, hidden)
    shapes[f"{_VISION}.embeddings.patch_embedding.weight"] = (width, 3, patch, patch)
    shapes[f"{_VISION}.embeddings.patch_embedding.bias"] = (width,)
    shapes[f"{_VISION}.embeddings.position_embedding.weight"] = ((tower["image_size"] // patch) ** 2, width)
    shapes |= _norm(f"{_VISION}.post_layernorm", width)
    # The original deletes the tower's last layer and its head before it saves.
    for i in range(tower["num_hidden_layers"] - 1):
        layer = f"{_VISION}.encoder.layers.{i}"
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", width, wide) | _linear(f"{layer}.mlp.fc2", wide, width)
    return shapes


def write_checkpoint(folder: Path, seed: int = 7, **config_overrides: Any) -> Path:
    """Write such a checkpoint, with random weights in two shards and a working tokenizer; returns the folder.

    A frame is 56x56 pixels and costs six tokens: two rows of two, and a newline each. `config_overrides` are entries of
    its ``config.json``; the weights follow them, and are stored in its ``torch_dtype``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = original_config(**config_overrides)
    weights = _weights(original_shapes(config), seed, getattr(torch, config["torch_dtype"]))
    names = list(weights)
    files: dict[str, str] = {}
    for number, of_shard in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in of_shard}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(of_shard, file)
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    generation = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": False,
        "eos_token_id": [config["eos_token_id"], config["bos_token_id"]],
        "pad_token_id": config["bos_token_id"],
        "transformers_version": "4.40.0.dev0",
    }
    contents = {
        "config.json": config,
        "generation_config.json": generation,
        "model.safetensors.index.json": {"metadata": {"total_size": size}, "weight_map": files},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    _tokenizer().save_pretrained(folder)
    return folder


@cache
def _tokenizer() -> Any:
    return build_tokenizer()


def _weights(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Much larger than a fresh model's, so that attention is far from uniform and rounding decides no ranking."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weight = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            weight = noise / noise[0].numel() ** 0.5
        weights[name] = weight.to(dtype)
    return weights


def _linear(name: str, width_in: int, width_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
