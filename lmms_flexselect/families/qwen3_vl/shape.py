"""The sizes of a Qwen3-VL checkpoint, for the cost model. A unit is a pair of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

from lmms_flexselect.cost.shape import DecoderShape, LinearShape, ModelShape, SelectorShape, TowerShape, parameters_of
from lmms_flexselect.families.qwen3_vl.lite import SelectorNetwork
from lmms_flexselect.lite.checkpoint import module_config
from lmms_flexselect.lite.networks import Tower


def shape(
    config: Any, arguments: Mapping[str, Any], selector: Any = None, grid: Sequence[int] | None = None
) -> ModelShape:
    """See `FamilySpec.shape`: of frames of `grid`, else of the largest that ``max_pixels`` or ``total_pixels`` allows.

    A projector for the decoder's input and one for each level of DeepStack are alike.
    """
    vision = config.vision_config
    layers, width, inner, merge = vision.depth, vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size
    most = int(arguments.get("total_pixels") or arguments["max_pixels"])
    patches = most // vision.patch_size**2 if grid is None else grid[0] * grid[1]
    patch_values = 3 * vision.temporal_patch_size * vision.patch_size**2
    tower = TowerShape(
        layers,
        width,
        matrix_values=(4 * width + 2 * inner) * width,
        patches=patches,
        patch_values=patch_values,
        tokens=patches,
        attention_pairs=layers * patches**2,
        elements_held=max(2 * inner + 4 * width, 18 * width),  # queries and keys are rotated in float32
    )
    tokens, wide = patches // merge**2, width * merge**2
    own = None
    if selector is not None:
        of_selector = module_config(selector, Tower("qwen3_vl", width, {"spatial_merge_size": merge}))
        own = SelectorShape.of(SelectorNetwork, of_selector)
    levels = 1 + len(vision.deepstack_visual_indexes)
    experts = config.model_type == "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration if experts else Qwen3VLForConditionalGeneration
    return ModelShape(
        parameters_of(model_class, config),
        DecoderShape.of(config.get_text_config()),
        tower,
        projector=(LinearShape(tokens, wide, wide), LinearShape(tokens, wide, None)) * levels,
        tokens=tokens,
        pixels=patches * patch_values,
        units_at_once=None,
        embedding_copies=2 + levels,
        pixels_on_device=False,
        selector=own,
    )
