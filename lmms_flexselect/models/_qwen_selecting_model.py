"""`SelectingModel` for the Qwen wrappers of lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.models._media import MediaProcessor
from lmms_flexselect.models._records import PreparedRow
from lmms_flexselect.models._selecting_model import Answers, SelectingModel

_INPUTS = {
    "input_ids",
    "attention_mask",
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
    "mm_token_type_ids",
}


class QwenSelectingModel(SelectingModel):
    """Called as upstream calls it, with what the processor made of a batch.

    Parameters
    ----------
    processor
        Tells what was read for each row.
    """

    def __init__(self, processor: MediaProcessor, *args: Any) -> None:
        super().__init__(*args)
        self._processor = processor

    def generate(self, **kwargs: Any) -> Tensor:
        """transformers' ``generate``, over prompts shortened to the token budget.

        Returns
        -------
        Tensor
            ``(batch, prompt + new)`` int64: the *unshortened* `input_ids` with the new tokens behind them, since
            upstream cuts the prompt off by its length. The answer of a row whose video could not be read is padding.
        """
        inputs = {name: kwargs.pop(name) for name in list(kwargs) if name in _INPUTS}
        ids = inputs["input_ids"]
        rows = self._processor.take_rows()[-len(ids) :]
        rows = [PreparedRow()] * (len(ids) - len(rows)) + rows
        return torch.cat([ids, self._generated(inputs, rows, **kwargs).to(ids.device)], dim=1)

    def _answer(self, inputs: Mapping[str, Any], **kwargs: Any) -> Answers:
        if not self._passes_through(inputs):
            return super()._answer(inputs, **kwargs)
        ids = inputs["input_ids"]
        new = self._family.model.generate(**inputs, **kwargs)[:, ids.shape[1] :]
        visual = (ids == self._family.model.config.video_token_id).sum(1).tolist()
        real = inputs.get("attention_mask", torch.ones_like(ids)).sum(1).tolist()
        counts = [
            {"visual_tokens": v, "visual_tokens_kept": v, "input_tokens": n} for v, n in zip(visual, real, strict=True)
        ]
        return Answers(new, counts, [None] * len(ids), 0.0)

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the request is upstream's own business: no video in it, or the library's baseline asked for."""
        baseline = self._options.selector == "none" and self._options.rope == "library"
        keeps_timing = self._options.seconds_per_unit is None
        return inputs.get("pixel_values_videos") is None or (baseline and keeps_timing)
