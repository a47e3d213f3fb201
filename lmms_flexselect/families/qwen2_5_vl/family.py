"""Qwen2.5-VL: processor inputs to `VideoPrompt`s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.families.family import (
    VisualTokens,
    reading_inputs,
)
from lmms_flexselect.families.mrope_family import MropeFamily
from lmms_flexselect.lite.networks import Tower

_SCORING_SECONDS_PER_UNIT = 1.0  # whatever the real sampling (algorithm.md, section 2)


@dataclass
class Qwen2_5_VL(MropeFamily):
    """Reads a `Qwen2_5_VLForConditionalGeneration`.

    Attributes
    ----------
    model, rope, patches_per_chunk
        See `MropeFamily`.
    seconds_per_unit
        Seconds between temporal units (pairs of frames); None takes ``second_per_grid_ts`` from the processor's
        inputs, that is, the real sampling. The paper's runs are 1.0.
    """

    seconds_per_unit: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "qwen2_5_vl"
    round_budget: ClassVar[bool] = True

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads."""
        vision = self.model.config.vision_config
        return Tower(self.name, vision.hidden_size, {"spatial_merge_size": vision.spatial_merge_size})

    def _scoring_step(self) -> float:
        return self.model.config.vision_config.tokens_per_second * _SCORING_SECONDS_PER_UNIT

    def _steps(self, inputs: Mapping[str, Any]) -> list[float]:
        videos, seconds = inputs.get("video_grid_thw"), inputs.get("second_per_grid_ts")
        if videos is None:
            return []
        if self.seconds_per_unit is not None or seconds is None:
            seconds = [1.0 if self.seconds_per_unit is None else self.seconds_per_unit] * len(videos)
        return [self.model.config.vision_config.tokens_per_second * float(each) for each in seconds]

    def _encode(self, kind: str, pixels: Tensor, grids: Sequence[Sequence[int]]) -> VisualTokens:
        encode = self.model.get_video_features if kind == "video" else self.model.get_image_features
        with reading_inputs(self.model.model.visual.merger) as read:
            features = torch.cat(list(encode(pixels, torch.tensor(grids, device=pixels.device)).pooler_output))
        if self.selector is None:
            return VisualTokens(features, None)
        vision = self.model.config.vision_config
        order = window_order(grids, vision.spatial_merge_size, vision.window_size // vision.patch_size)
        own = self.selector_tokens(read[0])
        return VisualTokens(features, own[order.argsort().to(own.device)])


def window_order(grids: Sequence[Sequence[int]], merge: int, window: int) -> Tensor:
    """The order in which the tower has the tokens of some media: window by window, in rows of windows.

    Parameters
    ----------
    grids
        Time, height and width of each, in patches.
    merge
        Patches that become a token, along a side.
    window
        Patches along a window's side.

    Returns
    -------
    Tensor
        ``(tokens,)`` int64: which token, counted in rows, is the tower's i-th.
    """
    side = window // merge
    order, before = [], 0
    for time, height, width in grids:
        rows, columns = height // merge, width // merge
        t, r, c = torch.meshgrid(*(torch.arange(size) for size in (time, rows, columns)), indexing="ij")
        of_window = (t * rows + r // side) * columns + c // side
        order.append(before + of_window.flatten().argsort(stable=True))
        before += time * rows * columns
    return torch.cat(order)
