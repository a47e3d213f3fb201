"""The configuration of an InternVL checkpoint, the original InternVL2.5 layout too, as transformers' `InternVLConfig`.

The plain InternVL2.5 models are published in their authors' layout alone (``model_type`` internvl_chat), which names
its parts otherwise and asks for remote code. Their ``config.json`` is read here as plain data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import InternVLConfig, LlamaConfig, Qwen2Config
from transformers.utils import cached_file

from lmms_flexselect.errors import OptionError, first_line
from lmms_flexselect.loading import raw_config

ORIGINAL_TYPE = "internvl_chat"
NATIVE_TYPE = "internvl"
IMAGE_TOKEN = "<IMG_CONTEXT>"

# What transformers has in an original decoder's place. InternLM2 is Llama with queries, keys and values in one matrix.
_DECODERS = {"InternLM2ForCausalLM": LlamaConfig, "Qwen2ForCausalLM": Qwen2Config}

# What this code does, by the names and values that an original config.json has for it; the last is where it says none.
_REQUIRED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "ps_version": (("v2",), "v1"),
    "downsample_ratio": ((0.5,), 0.5),
    "pad2square": ((False, None), None),
    "use_backbone_lora": ((0, None), None),
    "use_llm_lora": ((0, None), None),
}
# Names that mean the same in both; what is not listed is training's, or a default of the transformers of 2024.
_DECODER_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_DECODER_OPTIONS = ("rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
_QWEN2_OPTIONS = ("use_sliding_window", "sliding_window", "max_window_layers")
_TOWER_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)


def read_config(pretrained: str, revision: str | None = None) -> InternVLConfig:
    """The configuration of a checkpoint folder or hub name, native whichever its layout.

    Two attributes are added: `original_template`, the name of the conversation template that an original checkpoint
    asks for and None for a native one, and `flexselect`, an entry of that name in ``config.json`` or None.

    Raises
    ------
    OptionError
        If there is no such checkpoint, it is another family's, or one of a kind that this code does not do.
    """
    original = internvl_config(pretrained, revision)
    try:
        if original["model_type"] == NATIVE_TYPE:
            config = InternVLConfig.from_pretrained(pretrained, revision=revision)
            added = {"original_template": getattr(config, "original_template", None)}
        else:
            config = _native(original, added_tokens(pretrained, revision)[IMAGE_TOKEN])
            added = {"original_template": original.get("template")}
    except KeyError as error:
        raise OptionError(f"pretrained={pretrained}: its configuration files have no {error.args[0]}") from None
    except (AttributeError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise OptionError(f"pretrained={pretrained}: {first_line(error)}") from None
    for name, value in {**added, "flexselect": original.get("flexselect")}.items():
        setattr(config, name, value)
    return config


def internvl_config(pretrained: str, revision: str | None = None) -> dict[str, Any]:
    """What ``config.json`` says, as it is.

    Raises
    ------
    OptionError
        If there is none, or it is another family's.
    """
    original = raw_config(pretrained, revision)
    kind = original.get("model_type", "unknown")
    if kind not in (ORIGINAL_TYPE, NATIVE_TYPE):
        raise OptionError(
            f"pretrained={pretrained}: is a {kind} checkpoint; this class reads {NATIVE_TYPE} and {ORIGINAL_TYPE}"
        )
    return original


def added_tokens(pretrained: str, revision: str | None = None) -> dict[str, int]:
    """Ids of the tokens that an original checkpoint has beside its vocabulary, by their text.

    InternLM2 gives unused entries of its vocabulary another name: only ``tokenizer_config.json`` has those.
    """
    listed = _json(pretrained, "tokenizer_config.json", revision).get("added_tokens_decoder", {})
    named = {token["content"]: int(number) for number, token in listed.items()}
    return {**_json(pretrained, "added_tokens.json", revision), **named}


def _json(pretrained: str, name: str, revision: str | None) -> dict[str, Any]:
    """Of a file beside ``config.json``; empty where there is none."""
    path = cached_file(pretrained, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def _native(original: Mapping[str, Any], image_token_id: int) -> InternVLConfig:
    """From the contents of an original ``config.json``.

    Raises
    ------
    OptionError, ValueError
        If a setting asks for what this code does not do.
    KeyError
        If one is missing.
    """
    for name, (supported, default) in _REQUIRED.items():
        if (value := original.get(name, default)) not in supported:
            raise ValueError(f"{name}={value}: only {supported[0]} is supported")
    if missing := [name for name in ("vision_config", "llm_config") if not isinstance(original.get(name), Mapping)]:
        raise KeyError(missing[0])
    tower, text = _tower(original["vision_config"]), _decoder(original["llm_config"])
    size = tower["image_size"]
    if (forced := original.get("force_image_size") or size) != size:
        raise ValueError(f"force_image_size={forced}: only vision_config.image_size={size} is supported")
    ratio = original.get("downsample_ratio", 0.5)
    return InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=image_token_id,
        image_seq_length=int((size // tower["patch_size"]) ** 2 * ratio**2),
        downsample_ratio=ratio,
        vision_feature_layer=original.get("select_layer", -1),
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _tower(original: Mapping[str, Any]) -> dict[str, Any]:
    """InternViT's; where a value is not given, the default is that of the original code, which means its 6B size."""
    values: dict[str, Any] = dict(_sizes(original, _TOWER_SIZES, "vision_config"))
    values["attention_bias"] = original.get("qkv_bias", False)
    values["use_qk_norm"] = original.get("qk_normalization", True)
    values["norm_type"] = original.get("norm_type", "rms_norm")
    values["layer_norm_eps"] = original.get("layer_norm_eps", 1e-6)
    if values["use_qk_norm"] and values["layer_norm_eps"] != 1e-6:
        # transformers' norm of queries and keys knows no other.
        raise ValueError(f"vision_config.layer_norm_eps={values['layer_norm_eps']}: only 1e-06 with qk_normalization")
    return values | {name: original[name] for name in ("hidden_act", "num_channels") if name in original}


def _decoder(original: Mapping[str, Any]) -> LlamaConfig | Qwen2Config:
    architecture = next(iter(original.get("architectures") or ()), None)
    if architecture not in _DECODERS:
        raise ValueError(f"llm_config.architectures={architecture}: must be one of {', '.join(_DECODERS)}")
    values: dict[str, Any] = dict(_sizes(original, _DECODER_SIZES, "llm_config"))
    options = {"tie_word_embeddings": False, **original}
    values |= {name: options[name] for name in _DECODER_OPTIONS if name in options}
    if architecture == "InternLM2ForCausalLM":
        values["attention_bias"] = original.get("bias", False)
    else:
        values |= {name: original[name] for name in _QWEN2_OPTIONS if name in original}
    scaling = original.get("rope_scaling") or {"type": "default"}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("default", "dynamic"):
        raise ValueError(f"llm_config.rope_scaling={kind}: must be one of dynamic, null")
    values["rope_parameters"] = {"rope_type": kind, "rope_theta": original["rope_theta"]}
    if kind == "dynamic":
        values["rope_parameters"]["factor"] = scaling["factor"]
    return _DECODERS[architecture](**values)


def _sizes(original: Mapping[str, Any], names: Iterable[str], part: str) -> dict[str, int]:
    """Those of one part of ``config.json``; raises KeyError or ValueError."""
    for name in names:
        if name not in original:
            raise KeyError(f"{part}.{name}")
        if not isinstance(original[name], int) or original[name] < 1:
            raise ValueError(f"{part}.{name}={original[name]}: must be a whole number of at least 1")
    return {name: original[name] for name in names}
