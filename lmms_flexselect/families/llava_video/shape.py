"""The sizes of a LLaVA-Video checkpoint, for the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_flexselect.cost.shape import DecoderShape, LinearShape, ModelShape, SelectorShape, TowerShape, parameters_of
from lmms_flexselect.families.llava_video.family import LlavaVideo
from lmms_flexselect.families.llava_video.lite import SelectorNetwork
from lmms_flexselect.families.llava_video.model import LlavaVideoForCausalLM, pooled_rows
from lmms_flexselect.lite.checkpoint import module_config
from lmms_flexselect.lite.networks import Tower


def shape(config: Any, arguments: Mapping[str, Any], selector: Any = None, grid: Any = None) -> ModelShape:
    """See `FamilySpec.shape`; pooling is the configuration's where no argument says otherwise, `grid` is not used."""
    names = ("mm_spatial_pool_mode", "mm_spatial_pool_stride")
    pooling = {name: arguments.get(name, getattr(config, name)) for name in names}
    vision, patches = config.vision_config, config.patches_a_side**2
    rows = pooled_rows(config.patches_a_side, *pooling.values())
    layers, width, inner = vision.num_hidden_layers - 1, vision.hidden_size, vision.intermediate_size
    tower = TowerShape(
        layers,  # the last one is not built
        width,
        matrix_values=(4 * width + 2 * inner) * width,
        patches=patches,
        patch_values=3 * vision.patch_size**2,
        tokens=patches,
        attention_pairs=layers * patches**2,
        elements_held=2 * inner + 4 * width,
    )
    own = None
    if selector is not None:
        own = SelectorShape.of(SelectorNetwork, module_config(selector, Tower("llava_vid", width, pooling)))
    return ModelShape(
        parameters_of(LlavaVideoForCausalLM, config),
        DecoderShape.of(config),
        tower,
        # Frames are pooled between the two, which is what this package does; the original pools behind both.
        projector=(LinearShape(patches, width, None), LinearShape(rows**2, None, None)),
        tokens=rows * (rows + 1),  # the newlines
        pixels=3 * vision.image_size**2,
        units_at_once=LlavaVideo.frames_per_chunk,
        embedding_copies=1,
        pixels_on_device=False,
        selector=own,
    )
