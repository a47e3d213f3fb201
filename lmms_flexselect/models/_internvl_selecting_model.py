"""`SelectingModel` for lmms-eval's `internvl_hf`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_flexselect.models._batch_selecting_model import BatchSelectingModel

_SELECTORS = ("selector_ids", "selector_video", "selector_frame")
_OURS = ("token_video", "token_frame", *_SELECTORS, "video_keys", "left_out")


class InternVLSelectingModel(BatchSelectingModel):
    """Reads what `InternVLMedia` makes."""

    _inputs = frozenset({"input_ids", "attention_mask", "pixel_values", *_OURS})
    _visual_token = "image_token_id"

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """No video in it."""
        return bool((inputs["token_video"] < 0).all())

    def _upstreams(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in inputs.items() if name not in _OURS}
