"""The sizes of a Qwen2.5-VL checkpoint, for the cost model. A unit is a pair of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration

from lmms_flexselect.cost.shape import DecoderShape, LinearShape, ModelShape, SelectorShape, TowerShape, parameters_of
from lmms_flexselect.families.qwen2_5_vl.lite import SelectorNetwork
from lmms_flexselect.lite.checkpoint import module_config
from lmms_flexselect.lite.networks import Tower


def shape(
    config: Any, arguments: Mapping[str, Any], selector: Any = None, grid: Sequence[int] | None = None
) -> ModelShape:
    """See `FamilySpec.shape`: of frames of `grid`, else of the largest that the argument ``max_pixels`` allows."""
    vision = config.vision_config
    layers, width, inner, merge = vision.depth, vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size
    patches = int(arguments["max_pixels"]) // vision.patch_size**2 if grid is None else grid[0] * grid[1]
    patch_values = 3 * vision.temporal_patch_size * vision.patch_size**2
    whole = len(vision.fullatt_block_indexes)
    tower = TowerShape(
        layers,
        width,
        matrix_values=(4 * width + 3 * inner) * width,  # the MLP has a gate
        patches=patches,
        patch_values=patch_values,
        tokens=patches,
        attention_pairs=whole * patches**2 + (layers - whole) * _window_pairs(vision, patches, grid),
        elements_held=max(3 * inner + 3 * width, 18 * width),  # queries and keys are rotated in float32
    )
    tokens, wide = patches // merge**2, width * merge**2
    own = None
    if selector is not None:
        of_selector = module_config(selector, Tower("qwen2_5_vl", width, {"spatial_merge_size": merge}))
        own = SelectorShape.of(SelectorNetwork, of_selector)
    return ModelShape(
        parameters_of(Qwen2_5_VLForConditionalGeneration, config),
        DecoderShape.of(config.get_text_config()),
        tower,
        projector=(LinearShape(tokens, wide, wide), LinearShape(tokens, wide, None)),
        tokens=tokens,
        pixels=patches * patch_values,
        units_at_once=None,
        embedding_copies=3,
        pixels_on_device=False,
        selector=own,
    )


def _window_pairs(vision: Any, patches: int, grid: Sequence[int] | None) -> int:
    """Pairs of patches in the same window of one layer; windows at a frame's edges are smaller."""
    side = vision.window_size // vision.patch_size
    if grid is None:  # at most: as many whole windows as the patches fill
        windows, rest = divmod(patches, side**2)
        return windows * side**4 + rest**2

    def sides(patches: int) -> list[int]:
        return [min(side, patches - start) for start in range(0, patches, side)]

    assert side % vision.spatial_merge_size == 0
    return sum((rows * columns) ** 2 for rows in sides(grid[0]) for columns in sides(grid[1]))
