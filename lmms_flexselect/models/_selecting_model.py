"""The model that upstream's loops talk to: upstream's own, with the visual tokens of videos selected first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from transformers import StoppingCriteriaList

from lmms_flexselect.dump import write_selection
from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
from lmms_flexselect.flexselect import FlexSelect, Selection
from lmms_flexselect.models._measure import FirstTokenClock, now, peak_memory
from lmms_flexselect.models._media import MediaProcessor, PreparedRow
from lmms_flexselect.models._records import DocumentLog, SampleRecord
from lmms_flexselect.options import FlexSelectOptions

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


class SelectingModel:
    """Stands where upstream expects its `PreTrainedModel`; everything but `generate` is the wrapped one's.

    Parameters
    ----------
    family
        How the wrapped model is read.
    flexselect
        What shortens its prompts.
    options
        Resolved options.
    processor
        Tells what was read for each row.
    documents
        Tells which document each row is.
    """

    def __init__(
        self,
        family: Qwen2_5_VL,
        flexselect: FlexSelect,
        options: FlexSelectOptions,
        processor: MediaProcessor,
        documents: DocumentLog,
    ) -> None:
        self._family = family
        self._flexselect = flexselect
        self._options = options
        self._processor = processor
        self._documents = documents
        self.records: list[SampleRecord] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family.model, name)

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
        prepared = self._processor.take_rows()[-len(ids) :]
        prepared = [PreparedRow()] * (len(ids) - len(prepared)) + prepared
        clock = FirstTokenClock()
        criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or []), clock])
        selections: Sequence[Selection | None]

        start = now()
        with peak_memory() as peak:
            if self._passes_through(inputs):
                output = self._family.model.generate(**inputs, stopping_criteria=criteria, **kwargs)
                new, selections, selector_seconds = output[:, ids.shape[1] :], [None] * len(ids), 0.0
            else:
                prompts = self._family.prompts(inputs)
                selecting = now()
                made = [self._flexselect(prompt) for prompt in prompts]
                selector_seconds = now() - selecting
                selections, shortened = made, [selection.prompt for selection in made]
                new = torch.stack(self._family.generate(shortened, stopping_criteria=criteria, **kwargs))
            end = now()
        new = new.to(ids.device)
        pad = kwargs.get("pad_token_id") or 0
        for row, media in enumerate(prepared):
            if media.error is not None:
                new[row] = pad

        batch: dict[str, Any] = {
            "time_to_first_token_seconds": (clock.time or end) - start,
            "selector_seconds": selector_seconds,
            "generate_seconds": (end - start) / len(ids),
            "peak_memory_gib": peak.gib,
        }
        rows = zip(self._documents.last(len(ids)), prepared, selections, self._counts(inputs, new, pad), strict=True)
        for key, media, selection, counts in rows:
            task, split, doc_id = key or ("", "", -1)
            if selection is not None:
                counts |= {"visual_tokens_kept": selection.kept_tokens, "input_tokens": len(selection.prompt)}
            record = SampleRecord(task, split, doc_id, media.seconds, error=media.error, **batch, **counts)
            self.records.append(record)
            if self._options.dump_selection and selection is not None and selection.visual_tokens:
                self._dump(selection, record, media)
        return torch.cat([ids, new], dim=1)

    def _counts(self, inputs: dict[str, Tensor], new: Tensor, pad: int) -> list[dict[str, Any]]:
        """Tokens of each row as upstream sees them, before any selection."""
        ids = inputs["input_ids"]
        visual = (ids == self._family.model.config.video_token_id).sum(1).tolist()
        real = inputs.get("attention_mask", torch.ones_like(ids)).sum(1).tolist()
        answer = (new != pad).sum(1).tolist()
        return [
            {"visual_tokens": v, "visual_tokens_kept": v, "input_tokens": n, "output_tokens": o}
            for v, n, o in zip(visual, real, answer, strict=True)
        ]

    def _passes_through(self, inputs: dict[str, Tensor]) -> bool:
        """Whether the request is upstream's own business: no video in it, or the library's baseline asked for."""
        baseline = self._options.selector == "none" and self._options.rope == "library"
        keeps_timing = self._options.seconds_per_unit is None
        return inputs.get("pixel_values_videos") is None or (baseline and keeps_timing)

    def _dump(self, selection: Selection, record: SampleRecord, media: PreparedRow) -> None:
        name = f"{record.task}__{record.split}__{record.doc_id}" if record.doc_id >= 0 else f"{len(self.records)}"
        path = Path(str(self._options.dump_selection)) / f"{name}.npz"
        sample = {
            "task": record.task,
            "split": record.split,
            "doc_id": record.doc_id,
            "question": media.text,
            "videos": media.videos,
        }
        try:
            write_selection(path, selection, sample)
        except OSError as error:
            logger.warning(f"dump_selection: {path} was not written ({error})")
