"""What a checkpoint tells about how to run FlexSelect on it.

Three sources, later ones win: the published setting for the models that the paper used (`identify` says which one a
checkpoint is of), the checkpoint's own ``"flexselect"`` entry in its ``config.json``, and what the user gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_flexselect.checkpoints import identify

# Paper, implementation details: at most 1024 frames at 2 fps and a 7,040-token budget. At 308 x 560 pixels a 16:9
# frame pair costs 209 tokens. The lower bound is qwen-vl-utils' own for video (upstream's exceeds the upper one).
_QWEN2_5_VL: dict[str, Any] = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 308 * 560,
    "min_pixels": 128 * 28 * 28,
}

# 512 frames of 210 tokens, of which 32 frames' worth are kept; upstream would read 20 frames, pooled to 182.
_LLAVA_VIDEO: dict[str, Any] = {"max_frames_num": 512, "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}

# 512 frames of 256 tokens and two marks, of which 32 frames' worth are kept.
_INTERNVL: dict[str, Any] = {"num_frames": 512}

# Of all sizes of a family's published models.
_PUBLISHED = {"qwen2_5_vl": _QWEN2_5_VL, "llava_vid": _LLAVA_VIDEO, "internvl_hf": _INTERNVL}

# Whatever the checkpoint is: the paper's budget, and the one chat template that fits (upstream's is Vicuna's).
_BY_FAMILY: dict[str, dict[str, Any]] = {
    "llava_vid": {"token_budget": 32 * 210, "conv_template": "qwen_1_5"},
    "internvl_hf": {"token_budget": 32 * 258},
}

FRAMES_OPTION = {"llava_vid": "max_frames_num", "qwen2_5_vl": "max_num_frames", "internvl_hf": "num_frames"}
"""What each family calls the option that bounds the frames read."""

NO_ANSWER = ("dump_selection", "strict", "prefetch_videos", "store_gpu_gib", "store_cpu_gib")
"""Options that change no answer: where files go, what is done about bad videos, and what saves time for memory."""

PLACEMENT = ("batch_size", "device", "device_map")
"""Upstream's arguments that say where and how a model runs; answers are the same with others, but for rounding."""

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


def preset(
    family: str,
    pretrained: str,
    own: Mapping[str, Any] | None,
    num_layers: int,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
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
    config
        Contents of its ``config.json``, where they are at hand.
    """
    filled: dict[str, Any] = {
        "reference_layer": reference_layer(family, num_layers)[0],
        **_BY_FAMILY.get(family, {}),
    }
    if identify(family, pretrained, config).model is not None:
        filled |= _PUBLISHED[family]
    return filled | dict(own or {})


def preset_message(
    family: str, pretrained: str, own: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Which preset a checkpoint gets and why, for the log, and the log's level: ``INFO``, ``WARNING`` if in doubt."""
    identity = identify(family, pretrained, config)
    entry = ", and what its config.json says under flexselect" if own else ""
    if identity.model is None:
        level = "INFO" if own else "WARNING"
        rest = entry.removeprefix(", and ") or "lmms-eval's own frames and pixels"
        return f"pretrained={pretrained}: no preset fits: {identity.reason}. Without other arguments: {rest}", level
    settings = ", ".join(f"{name}={value}" for name, value in _PUBLISHED[family].items())
    said = f"pretrained={pretrained}: preset of {identity.model} ({settings}{entry}): {identity.reason}"
    if identity.doubt:
        return f"{said}. But its shape is another: {identity.doubt}", "WARNING"
    return said, "INFO"
