"""The model that upstream's loops talk to: upstream's own, with the visual tokens of videos selected first."""

from __future__ import annotations

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

        selections: list[Selection] = []
        start = selected = now()
        with peak_memory() as peak:
            if self._passes_through(inputs):
                output = self._family.model.generate(**inputs, stopping_criteria=criteria, **kwargs)
                new = output[:, ids.shape[1] :]
                selector_seconds = 0.0
            else:
                prompts = self._family.prompts(inputs)
                selected = now()
                selections = [self._flexselect(prompt) for prompt in prompts]
                selector_seconds = now() - selected
                shortened = [selection.prompt for selection in selections]
                new = torch.stack(self._family.generate(shortened, stopping_criteria=criteria, **kwargs))
            end = now()
        new = new.to(ids.device)
        pad = kwargs.get("pad_token_id") or 0
        for row, media in enumerate(prepared):
            if media.error is not None:
                new[row] = pad

        keys = self._documents.last(len(ids))
        real = inputs.get("attention_mask", torch.ones_like(ids)).sum(1).tolist()
        visual = (ids == self._family.model.config.video_token_id).sum(1).tolist()
        for row, (key, media) in enumerate(zip(keys, prepared, strict=True)):
            selection = selections[row] if selections else None
            task, split, doc_id = key or ("", "", -1)
            self.records.append(
                SampleRecord(
                    task=task,
                    split=split,
                    doc_id=doc_id,
                    video_seconds=media.seconds,
                    time_to_first_token_seconds=(clock.time or end) - start,
                    selector_seconds=selector_seconds,
                    generate_seconds=(end - start) / len(ids),
                    visual_tokens=visual[row],
                    visual_tokens_kept=selection.kept_tokens if selection else visual[row],
                    input_tokens=len(selection.prompt) if selection else real[row],
                    output_tokens=int((new[row] != pad).sum()),
                    peak_memory_gib=peak.gib,
                    error=media.error,
                )
            )
            if self._options.dump_selection and selection and selection.visual_tokens:
                self._dump(selection, self.records[-1], media)
        return torch.cat([ids, new], dim=1)

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
