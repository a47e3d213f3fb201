"""Videos and questions for Qwen3-VL outside of lmms-eval's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

from lmms_flexselect.families.grid_reader import GridReader
from lmms_flexselect.families.qwen3_vl.family import Qwen3_VL


class Qwen3VLReader(GridReader):
    """See `GridReader`."""

    name = "qwen3_vl"

    @classmethod
    def model_classes(cls) -> Mapping[str, Any]:
        """See `GridReader.model_classes`."""
        return {"qwen3_vl": Qwen3VLForConditionalGeneration, "qwen3_vl_moe": Qwen3VLMoeForConditionalGeneration}

    @classmethod
    def make_family(cls, model: Any, tokenizer: Any) -> Qwen3_VL:
        """See `GridReader.make_family`."""
        return Qwen3_VL(model, tokenizer)
