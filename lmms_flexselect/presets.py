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

# The paper did not run it. Frames and budget are those of Qwen2.5-VL, and so, in larger patches, are the tokens: a 16:9
# frame pair costs 209.
_QWEN3_VL: dict[str, Any] = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 352 * 608,
    "min_pixels": 128 * 32 * 32,
}

# 512 frames of 210 tokens, of which 32 frames' worth are kept; upstream would read 20 frames, pooled to 182.
_LLAVA_VIDEO: dict[str, Any] = {"max_frames_num": 512, "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}

# 512 frames of 256 tokens and two marks, of which 32 frames' worth are kept.
_INTERNVL: dict[str, Any] = {"num_frames": 512}

_BY_NAME: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_5_vl": (r"qwen2\.5-vl-(3b|7b|32b|72b)", _QWEN2_5_VL),
    "llava_vid": (r"llava-video-(7b|72b)", _LLAVA_VIDEO),
    "internvl_hf": (r"internvl2_5-8b$", _INTERNVL),
    "qwen3_vl": (r"qwen3-vl-(2b|4b|8b|32b|30b-a3b|235b-a22b)", _QWEN3_VL),
}

# Whatever the checkpoint's name: the paper's budget, and the one chat template that fits (upstream's is Vicuna's).
_BY_FAMILY: dict[str, dict[str, Any]] = {
    "llava_vid": {"token_budget": 32 * 210, "conv_template": "qwen_1_5"},
    "internvl_hf": {"token_budget": 32 * 258},
}

FRAMES_OPTION = {
    "llava_vid": "max_frames_num",
    "qwen2_5_vl": "max_num_frames",
    "internvl_hf": "num_frames",
    "qwen3_vl": "max_num_frames",
}
"""What each family calls the option that bounds the frames read."""

NO_ANSWER = ("dump_selection", "strict", "prefetch_videos", "store_gpu_gib", "store_cpu_gib")
"""Options that change no answer: where files go, what is done about bad videos, and what saves time for memory."""

# Reference layers the paper measured, by the decoder's depth: 7B/8B and 72B.
_MEASURED_LAYER: dict[tuple[str, int], int] = {
    ("qwen2_5_vl", 28): 20,
    ("qwen2_5_vl", 80): 60,
    ("llava_vid", 28): 19,
    ("llava_vid", 80): 60,
    ("internvl_hf", 32): 15,
}

# For any other depth the same fraction as in the 7B model. Not measured: a start for a recall@K analysis.
_RELATIVE_DEPTH = {"llava_vid": 19 / 28, "internvl_hf": 15 / 32}
_RELATIVE_DEPTH_ELSEWHERE = 20 / 28


def reference_layer(family: str, num_layers: int) -> tuple[int, bool]:
    """The default reference layer of a decoder, and whether the paper measured it."""
    measured = _MEASURED_LAYER.get((family, num_layers))
    if measured is not None:
        return measured, True
    depth = _RELATIVE_DEPTH.get(family, _RELATIVE_DEPTH_ELSEWHERE)
    return min(round(num_layers * depth), num_layers - 1), False


def preset(family: str, pretrained: str, own: Mapping[str, Any] | None, num_layers: int) -> dict[str, Any]:
    """Model arguments that fit a checkpoint, ours and upstream's.

    Parameters
    ----------
    family
        ``"qwen2_5_vl"`` or ``"llava_vid"``: upstream's name of it.
    pretrained
        Hub name or folder, as given.
    own
        The ``"flexselect"`` entry of the checkpoint's configuration, if it has one.
    num_layers
        Depth of its decoder.
    """
    filled: dict[str, Any] = {
        "reference_layer": reference_layer(family, num_layers)[0],
        **_BY_FAMILY.get(family, {}),
    }
    pattern, values = _BY_NAME[family]
    if re.search(pattern, pretrained, re.IGNORECASE):
        filled |= values
    return filled | dict(own or {})
