"""What a checkpoint tells about how to run FlexSelect on it.

Three sources, later ones win: the published setting for checkpoints the paper used (by name), the checkpoint's own
``"flexselect"`` entry in its ``config.json``, and what the user gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Paper, implementation details: at most 1024 frames at 2 fps and a 7,040-token budget. At 308 x 560 pixels a 16:9
# frame pair costs 209 tokens. The lower bound is qwen-vl-utils' own for video (upstream's exceeds the upper one).
_QWEN2_5_VL: dict[str, Any] = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 308 * 560,
    "min_pixels": 128 * 28 * 28,
}

_BY_NAME: dict[str, dict[str, Any]] = {
    r"qwen2\.5-vl-(3b|7b|32b|72b)": _QWEN2_5_VL,
}

# Reference layers the paper measured, by the decoder's depth: 7B/8B and 72B.
_MEASURED_LAYER: dict[tuple[str, int], int] = {("qwen2_5_vl", 28): 20, ("qwen2_5_vl", 80): 60}

# For any other depth the same fraction as in the 7B model. Not measured: a start for a recall@K analysis.
_RELATIVE_DEPTH = 20 / 28


def reference_layer(family: str, num_layers: int) -> tuple[int, bool]:
    """The default reference layer of a decoder, and whether the paper measured it."""
    measured = _MEASURED_LAYER.get((family, num_layers))
    if measured is not None:
        return measured, True
    return min(round(num_layers * _RELATIVE_DEPTH), num_layers - 1), False


def preset(family: str, pretrained: str, own: Mapping[str, Any] | None, num_layers: int) -> dict[str, Any]:
    """Model arguments that fit a checkpoint, ours and upstream's.

    Parameters
    ----------
    family
        ``"qwen2_5_vl"``, …
    pretrained
        Hub name or folder, as given.
    own
        The ``"flexselect"`` entry of the checkpoint's configuration, if it has one.
    num_layers
        Depth of its decoder.
    """
    filled: dict[str, Any] = {"reference_layer": reference_layer(family, num_layers)[0]}
    for pattern, values in _BY_NAME.items():
        if re.search(pattern, pretrained, re.IGNORECASE):
            filled |= values
    return filled | dict(own or {})
