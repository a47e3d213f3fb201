"""Small InternVL2.5 checkpoints as the original ones are published, written file by file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.support.internvl_tokenizers import tokenizer_files, vocabulary
from tests.support.internvl_weights import (
    IMAGE_SIZE,
    PATCH,
    ROPE_FACTOR,
    ROPE_THETA,
    TEXT,
    TOWER,
    original_weights,
    random_native,
)


def original_config(llm: str, vit: str, tied: bool = False, **overrides: Any) -> dict[str, Any]:
    """A ``config.json`` in the words of the published ones; `overrides` are entries of it or of its two parts."""
    left_by_transformers_of_2024 = {
        "_name_or_path": "/somewhere/on/a/cluster",
        "add_cross_attention": False,
        "max_length": 20,
        "output_attentions": False,
        "pruned_heads": {},
        "return_dict": True,
        "temperature": 1.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.37.2",
        "use_bfloat16": True,
        "use_cache": True,
    }
    text = {
        **left_by_transformers_of_2024,
        **TEXT,
        "architectures": [{"internlm2": "InternLM2ForCausalLM", "qwen2": "Qwen2ForCausalLM"}[llm]],
        "attn_implementation": "flash_attention_2",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": llm,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": ROPE_FACTOR, "type": "dynamic"},
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary(llm)[0],
    }
    if llm == "internlm2":
        text |= {"auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}, "bias": False}
        text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    else:
        end, pad = vocabulary(llm)[1]["<|im_end|>"], vocabulary(llm)[1]["<|endoftext|>"]
        text |= {"bos_token_id": pad, "eos_token_id": end, "max_window_layers": 21, "attention_dropout": 0.0}
        text |= {"sliding_window": 32768, "use_sliding_window": False, "pad_token_id": None}
    tower = {
        **left_by_transformers_of_2024,
        **TOWER,
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "image_size": IMAGE_SIZE,
        "initializer_factor": 1.0,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm" if vit == "300m" else "rms_norm",
        "num_channels": 3,
        "patch_size": PATCH,
        "qk_normalization": vit == "6b",
        "qkv_bias": vit == "300m",
        "use_flash_attn": True,
    }
    config: dict[str, Any] = {
        "_commit_hash": None,
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": IMAGE_SIZE,
        "llm_config": text,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": tower,
    }
    for name, value in overrides.items():
        nested = name in ("llm_config", "vision_config") and value is not None
        config[name] = {**config[name], **value} if nested else value
    return config


def write_original(
    folder: Path,
    llm: str = "internlm2",
    vit: str = "300m",
    tied: bool = False,
    shards: int = 2,
    edit: Callable[[dict[str, Tensor]], Any] | None = None,
    **config_overrides: Any,
) -> Path:
    """Write such a checkpoint with the weights of `random_native` and a working tokenizer; returns the folder.

    Parameters
    ----------
    folder, llm, vit, tied
        Where, and what (see `random_native`).
    shards
        Files that the weights are spread over, in no order that means anything; with 1 there is no index.
    edit
        Called with the original weights before they are written, to spoil them in place.
    config_overrides
        See `original_config`; the weights do not follow them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.clone() for name, weight in original_weights(random_native(llm, vit, tied)).items()}
    if edit is not None:
        edit(weights)
    files: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        names = sorted(weights)[number::shards]
        save_file({name: weights[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    contents: dict[str, Any] = {"config.json": original_config(llm, vit, tied, **config_overrides)}
    if shards > 1:
        contents["model.safetensors.index.json"] = {"metadata": {"total_size": 0}, "weight_map": files}
    return write_files(folder, {**contents, **tokenizer_files(llm)})


def write_files(folder: Path, contents: Mapping[str, Any]) -> Path:
    """Write files by their names: bytes as they are, all else as JSON; returns the folder."""
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else (json.dumps(content, indent=2) + "\n").encode()
        (folder / name).write_bytes(data)
    return folder
