"""Every model class, with arguments that make its videos exceed the budget."""

from __future__ import annotations

from typing import Any

# By name: the class, whether it is the simple one, and its arguments; stock videos last 6 seconds.
QWEN = {"max_num_frames": 16, "min_pixels": 3136, "max_pixels": 112 * 84, "token_budget": 24, "max_frames_per_set": 4}
LLAVA = {"max_frames_num": 16, "token_budget": 12, "max_frames_per_set": 3, "reference_layer": 3}
INTERNVL = {"num_frames": 6, "token_budget": 12, "max_frames_per_set": 3, "reference_layer": 2}
CLASSES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "qwen2_5_vl": ("qwen2_5_vl_flexselect", False, QWEN),
    "qwen2_5_vl simple": ("qwen2_5_vl_flexselect", True, QWEN),
    "llava_vid decord": ("llava_vid_flexselect", True, LLAVA),
    "llava_vid pyav": ("llava_vid_flexselect", True, {**LLAVA, "video_decode_backend": "pyav"}),
    "internvl_hf": ("internvl_hf_flexselect", False, INTERNVL),
}
