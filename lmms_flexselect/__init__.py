"""FlexSelect visual-token selection for long video, as a library and as a plugin for lmms-eval.

The names below are loaded on first use: lmms-eval imports this package for its model manifests long before, and often
without ever, needing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmms_flexselect.errors import FlexSelectError
    from lmms_flexselect.families.llava_video import LlavaVideo, load_llava_video, question_ids
    from lmms_flexselect.families.llava_video_frames import read_llava_video
    from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
    from lmms_flexselect.families.qwen2_5_vl_frames import FrameSampling, read_video
    from lmms_flexselect.flexselect import FlexSelect, Selection
    from lmms_flexselect.prompt import VideoPrompt
    from lmms_flexselect.selectors import Random, ReferenceLayer, Uniform

__version__ = "0.1.0"
__all__ = [
    "FlexSelect",
    "FlexSelectError",
    "FrameSampling",
    "LlavaVideo",
    "Qwen2_5_VL",
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
    "FlexSelect": "flexselect",
    "FlexSelectError": "errors",
    "FrameSampling": "families.qwen2_5_vl_frames",
    "LlavaVideo": "families.llava_video",
    "Qwen2_5_VL": "families.qwen2_5_vl",
    "Random": "selectors",
    "ReferenceLayer": "selectors",
    "Selection": "flexselect",
    "Uniform": "selectors",
    "VideoPrompt": "prompt",
    "load_llava_video": "families.llava_video",
    "question_ids": "families.llava_video",
    "read_llava_video": "families.llava_video_frames",
    "read_video": "families.qwen2_5_vl_frames",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
