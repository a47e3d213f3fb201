"""Videos and questions for Qwen2.5-VL outside of lmms-eval's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration

from lmms_flexselect.families.grid_reader import GridReader
from lmms_flexselect.families.qwen2_5_vl.family import Qwen2_5_VL


class Qwen2_5_VLReader(GridReader):
    """See `GridReader`."""

    name = "qwen2_5_vl"

    @classmethod
    def model_classes(cls) -> Mapping[str, Any]:
        """See `GridReader.model_classes`."""
        return {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}

    @classmethod
    def make_family(cls, model: Any, tokenizer: Any) -> Qwen2_5_VL:
        """See `GridReader.make_family`."""
        return Qwen2_5_VL(model)
