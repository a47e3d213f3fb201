"""Sizes of a model, counted from its configuration: transformers builds it on the meta device, without memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lmms_flexselect.lite.networks import Tower


@dataclass(frozen=True)
class Decoder:
    """The text model's, by the paper's and transformers' words."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """From a text configuration of transformers."""
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, heads)
        return cls(*sizes, config.num_key_value_heads, head_size)


@dataclass(frozen=True)
class Sizes:
    """A model's, and what one unit (a frame; Qwen2.5-VL: a pair) of the largest frames costs it.

    Attributes
    ----------
    family
        Upstream's name of it.
    parameters
        Of the whole model.
    decoder
        Of the text model.
    tower
        What a selector reads of the vision tower.
    tower_width, tower_intermediate
        Of the vision tower.
    patches
        That the tower reads of one unit.
    tokens
        Visual tokens of one unit.
    pixels
        Values of one unit's pixels.
    """

    family: str
    parameters: int
    decoder: Decoder
    tower: Tower
    tower_width: int
    tower_intermediate: int
    patches: int
    tokens: int
    pixels: int


def sizes(family: str, config: Any, arguments: Mapping[str, Any]) -> Sizes:
    """Count.

    Parameters
    ----------
    family
        ``"llava_vid"``, ``"qwen2_5_vl"`` or ``"internvl_hf"``.
    config
        What the family's model class reads of the checkpoint.
    arguments
        Upstream's model arguments that tell resolution and pooling.
    """
    return {"llava_vid": _llava_vid, "qwen2_5_vl": _qwen2_5_vl, "internvl_hf": _internvl_hf}[family](config, arguments)


def selector_sizes(raw: Mapping[str, Any], tower: Tower) -> tuple[int, Decoder]:
    """Parameters and decoder of a FlexSelect-Lite selector, from its ``config.json``.

    Raises
    ------
    ValueError
        If a size is missing in it.
    """
    from lmms_flexselect.lite.checkpoint import module_config
    from lmms_flexselect.lite.networks import network_of

    config = module_config(raw, tower)
    return _count(network_of(tower.family), config), Decoder.of(config)


def _count(model_class: Any, config: Any) -> int:
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())  # tied ones count once


def _llava_vid(config: Any, arguments: Mapping[str, Any]) -> Sizes:
    from lmms_flexselect.families.llava_video.model import LlavaVideoForCausalLM, pooled_rows

    pooling = {name: arguments[name] for name in ("mm_spatial_pool_mode", "mm_spatial_pool_stride")}
    rows = pooled_rows(config.patches_a_side, *pooling.values())
    vision = config.vision_config
    return Sizes(
        "llava_vid",
        _count(LlavaVideoForCausalLM, config),
        Decoder.of(config),
        Tower("llava_vid", vision.hidden_size, pooling),
        vision.hidden_size,
        vision.intermediate_size,
        patches=config.patches_a_side**2,
        tokens=rows * (rows + 1),
        pixels=3 * vision.image_size**2,
    )


def _qwen2_5_vl(config: Any, arguments: Mapping[str, Any]) -> Sizes:
    from transformers import Qwen2_5_VLForConditionalGeneration

    vision = config.vision_config
    patches = int(arguments["max_pixels"]) // vision.patch_size**2
    return Sizes(
        "qwen2_5_vl",
        _count(Qwen2_5_VLForConditionalGeneration, config),
        Decoder.of(config.get_text_config()),
        Tower("qwen2_5_vl", vision.hidden_size, {"spatial_merge_size": vision.spatial_merge_size}),
        vision.hidden_size,
        vision.intermediate_size,
        patches=patches,
        tokens=patches // vision.spatial_merge_size**2,
        pixels=patches * vision.patch_size**2 * vision.temporal_patch_size * 3,
    )


def _internvl_hf(config: Any, arguments: Mapping[str, Any]) -> Sizes:
    from transformers import InternVLForConditionalGeneration

    vision = config.vision_config
    side, patch = (
        value[0] if isinstance(value, (list, tuple)) else value for value in (vision.image_size, vision.patch_size)
    )
    return Sizes(
        "internvl_hf",
        _count(InternVLForConditionalGeneration, config),
        Decoder.of(config.get_text_config()),
        Tower("internvl_hf", vision.hidden_size * round(config.downsample_ratio**-2)),
        vision.hidden_size,
        vision.intermediate_size,
        patches=(side // patch) ** 2 + 1,
        tokens=config.image_seq_length + 2,  # <img> and </img>
        pixels=3 * side**2,
    )
