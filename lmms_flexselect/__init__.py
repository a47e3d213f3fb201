"""FlexSelect visual-token selection for long video, as a library and as a plugin for lmms-eval.

The names below are loaded on first use: lmms-eval imports this package for its model manifests long before, and often
without ever, needing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmms_flexselect.errors import FlexSelectError
    from lmms_flexselect.families.grid_frames import FrameSampling, read_video
    from lmms_flexselect.families.llava_video.family import LlavaVideo, load_llava_video, question_ids
    from lmms_flexselect.families.llava_video.frames import read_llava_video
    from lmms_flexselect.families.qwen2_5_vl.family import Qwen2_5_VL
    from lmms_flexselect.families.qwen3_vl.family import Qwen3_VL
    from lmms_flexselect.method.flexselect import FlexSelect, Selection
    from lmms_flexselect.method.prompt import VideoPrompt
    from lmms_flexselect.method.selectors import Random, ReferenceLayer, Uniform

__version__ = "0.1.0"
__all__ = [
    "FlexSelect",
    "FlexSelectError",
    "FrameSampling",
    "LlavaVideo",
    "Qwen2_5_VL",
    "Qwen3_VL",
    "Random",
    "ReferenceLayer",
    "Selection",
    "Uniform",
    "VideoPrompt",
    "load_llava_video",
    "question_ids",
    "read_llava_video",
    "read_video",
]

_HOME = {
    "FlexSelect": "method.flexselect",
    "FlexSelectError": "errors",
    "FrameSampling": "families.grid_frames",
    "LlavaVideo": "families.llava_video.family",
    "Qwen2_5_VL": "families.qwen2_5_vl.family",
    "Qwen3_VL": "families.qwen3_vl.family",
    "Random": "method.selectors",
    "ReferenceLayer": "method.selectors",
    "Selection": "method.flexselect",
    "Uniform": "method.selectors",
    "VideoPrompt": "method.prompt",
    "load_llava_video": "families.llava_video.family",
    "question_ids": "families.llava_video.family",
    "read_llava_video": "families.llava_video.frames",
    "read_video": "families.grid_frames",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
