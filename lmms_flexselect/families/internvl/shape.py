"""The sizes of an InternVL checkpoint, for the cost model. A unit is a frame, one tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import InternVLForConditionalGeneration

from lmms_flexselect.cost.shape import DecoderShape, LinearShape, ModelShape, SelectorShape, TowerShape, parameters_of
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.lite import SelectorNetwork
from lmms_flexselect.lite.checkpoint import module_config
from lmms_flexselect.lite.networks import Tower


def shape(config: Any, arguments: Mapping[str, Any], selector: Any = None, grid: Any = None) -> ModelShape:
    """See `FamilySpec.shape`; the configuration alone says all, `arguments` and `grid` are not used."""
    vision, tokens = config.vision_config, config.image_seq_length
    layers, width, inner = vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size
    side, patch = (_side(size) for size in (vision.image_size, vision.patch_size))
    patches = (side // patch) ** 2
    tower = TowerShape(
        layers,
        width,
        matrix_values=(4 * width + 2 * inner) * width,
        patches=patches,
        patch_values=3 * patch**2,
        tokens=patches + 1,  # with a class token
        attention_pairs=layers * (patches + 1) ** 2,
        elements_held=2 * inner + 5 * width,
    )
    wide = width * round(config.downsample_ratio**-2)  # after the pixel shuffle
    own = None
    if selector is not None:
        own = SelectorShape.of(SelectorNetwork, module_config(selector, Tower("internvl_hf", wide)))
    return ModelShape(
        parameters_of(InternVLForConditionalGeneration, config),
        DecoderShape.of(config.get_text_config()),
        tower,
        projector=(LinearShape(tokens, wide, None), LinearShape(tokens, None, None)),
        tokens=tokens + 2,  # <img> and </img>
        pixels=3 * side**2,
        units_at_once=InternVL.tiles_per_chunk,
        embedding_copies=3,
        pixels_on_device=True,
        selector=own,
    )


def _side(size: Any) -> int:
    """transformers has one number or two equal ones."""
    return size[0] if isinstance(size, (list, tuple)) else size
