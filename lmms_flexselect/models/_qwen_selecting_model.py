"""`SelectingModel` for the Qwen wrappers of lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_flexselect.families.qwen2_5_vl.options import Options
from lmms_flexselect.models._batch_selecting_model import BatchSelectingModel


class QwenSelectingModel(BatchSelectingModel):
    """Reads what a Qwen processor makes."""

    _options: Options
    _inputs = frozenset(
        {
            "input_ids",
            "attention_mask",
            "pixel_values",
            "pixel_values_videos",
            "image_grid_thw",
            "video_grid_thw",
            "second_per_grid_ts",
            "mm_token_type_ids",
            "video_keys",
            "left_out",
        }
    )
    _visual_token = "video_token_id"

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """No video in it, or the library's baseline asked for."""
        baseline = self._options.selector == "none" and self._options.rope == "library"
        keeps_timing = self._options.seconds_per_unit is None
        return inputs.get("video_grid_thw") is None or (baseline and keeps_timing)

    def _upstreams(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in inputs.items() if name not in ("video_keys", "left_out")}
