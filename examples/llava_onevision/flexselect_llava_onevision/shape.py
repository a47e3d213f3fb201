"""The sizes of a checkpoint, for ``lmms-flexselect doctor``."""

from collections.abc import Mapping
from typing import Any

from transformers import LlavaOnevisionForConditionalGeneration

from flexselect_llava_onevision.family import FRAMES_AT_ONCE, side_of
from lmms_flexselect.cost.shape import DecoderShape, LinearShape, ModelShape, TowerShape, parameters_of


def shape(config: Any, arguments: Mapping[str, Any], selector: Any = None, grid: Any = None) -> ModelShape:
    """See `FamilySpec.shape`; all frames are of one size."""
    vision, patches = config.vision_config, (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    layers, width, inner = vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size
    matrices, held, pairs = (4 * width + 2 * inner) * width, 2 * inner + 4 * width, layers * patches**2
    return ModelShape(
        parameters_of(LlavaOnevisionForConditionalGeneration, config),
        DecoderShape.of(config.text_config),
        TowerShape(layers, width, matrices, patches, 3 * vision.patch_size**2, patches, pairs, held),
        projector=(LinearShape(patches, width, None), LinearShape(patches, None, None)),
        tokens=side_of(config) ** 2,
        pixels=3 * vision.image_size**2,
        units_at_once=FRAMES_AT_ONCE,
        embedding_copies=2,
        pixels_on_device=True,
    )
