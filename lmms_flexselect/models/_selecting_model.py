"""The model that upstream's loops talk to: upstream's own, with the visual tokens of videos selected first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from transformers import StoppingCriteriaList

from lmms_flexselect.dump import write_selection
from lmms_flexselect.method.flexselect import FlexSelect, Selection
from lmms_flexselect.models._measure import FirstTokenClock, now, peak_memory
from lmms_flexselect.models._preflight import Paths
from lmms_flexselect.models._records import DocumentKey, PreparedRow, SampleRecord
from lmms_flexselect.options import FlexSelectOptions


@dataclass
class Answers:
    """What a batch of prompts was answered.

    Attributes
    ----------
    new
        ``(batch, new)`` int64, padded behind.
    counts
        Of each row: visual tokens before and after selection, tokens of the prompt as it was read.
    selections
        Of each row; None for one that was not ours to read.
    selector_seconds
        Spent on selection.
    """

    new: Tensor
    counts: list[dict[str, int]]
    selections: Sequence[Selection | None]
    selector_seconds: float


class SelectingModel:
    """Stands where upstream expects its model; what a family's subclass does not define is the wrapped one's.

    A subclass has the call that upstream makes (`generate`, …) and turns its arguments into the family's inputs.

    Parameters
    ----------
    family
        How the wrapped model is read.
    flexselect
        What shortens its prompts.
    options
        Resolved options.
    """

    def __init__(self, family: Any, flexselect: FlexSelect, options: FlexSelectOptions) -> None:
        self._family = family
        self._flexselect = flexselect
        self._options = options
        self._batch: list[tuple[DocumentKey, Paths | None]] = []
        self._dumped: Counter[str] = Counter()
        self.records: list[SampleRecord] = []

    def begin_run(self) -> None:
        """Write what is kept of a document under its name again, in place of what was written before."""
        self._dumped.clear()

    def begin(self, documents: list[tuple[DocumentKey, Paths | None]]) -> None:
        """Say which document each row of the following calls is, and which videos it shows, if that is known."""
        self._batch = documents

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family.model, name)

    def _generated(self, inputs: Mapping[str, Any], rows: list[PreparedRow], **kwargs: Any) -> Tensor:
        """transformers' ``generate`` over a batch of prompts shortened to the token budget, measured and recorded.

        Returns
        -------
        Tensor
            ``(batch, new)`` int64: new tokens alone. The answer of a row whose video could not be read is padding.
        """
        clock = FirstTokenClock()
        criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or []), clock])
        start = now()
        with peak_memory() as peak:
            answers = self._answer(inputs, stopping_criteria=criteria, **kwargs)
            end = now()
        pad = self._padding(kwargs)
        for row, media in enumerate(rows):
            if media.error is not None:
                answers.new[row] = pad
        self._record(
            rows,
            answers.selections,
            [
                {**counts, "output_tokens": int((new != pad).sum())}
                for counts, new in zip(answers.counts, answers.new, strict=True)
            ],
            time_to_first_token_seconds=(clock.time or end) - start,
            selector_seconds=answers.selector_seconds,
            generate_seconds=(end - start) / len(rows),
            peak_memory_gib=peak.gib,
        )
        return answers.new

    def _answer(self, inputs: Mapping[str, Any], **kwargs: Any) -> Answers:
        selections, seconds = self._selected(inputs)
        new = torch.stack(self._family.generate([selection.prompt for selection in selections], **kwargs))
        return Answers(new, [prompt_counts(selection) for selection in selections], selections, seconds)

    def _selected(self, inputs: Mapping[str, Any]) -> tuple[list[Selection], float]:
        """The shortened prompts of a batch, and the seconds that selection took."""
        prompts = self._family.prompts(inputs)
        start = now()
        selections = [self._flexselect(prompt) for prompt in prompts]
        return selections, now() - start

    def _padding(self, kwargs: Mapping[str, Any]) -> int:
        """The token that says nothing: what shorter answers of a batch are filled up with."""
        configured = self._family.model.generation_config
        ends = configured.eos_token_id if isinstance(configured.eos_token_id, list) else [configured.eos_token_id]
        candidates = (kwargs.get("pad_token_id"), configured.pad_token_id, *ends)
        return next((token for token in candidates if token is not None), 0)

    def _record(
        self,
        rows: list[PreparedRow],
        selections: Sequence[Selection | None],
        counts: list[dict[str, int]],
        **measured: Any,
    ) -> None:
        if len(rows) != len(self._batch):
            raise RuntimeError(f"{len(rows)} prompts came to the model, of a batch of {len(self._batch)} requests")
        for (key, videos), media, selection, count in zip(self._batch, rows, selections, counts, strict=True):
            shown = [video["path"] for video in media.videos]
            if videos and shown and not set(shown) <= set(videos):
                raise RuntimeError(f"document {key} is about {', '.join(videos)}; its prompt shows {', '.join(shown)}")
            task, split, doc_id = key
            record = SampleRecord(task, split, doc_id, media.seconds, error=media.error, **measured, **count)
            self.records.append(record)
            if self._options.dump_selection and selection is not None and selection.visual_tokens:
                self._dump(selection, record, media)

    def _dump(self, selection: Selection, record: SampleRecord, media: PreparedRow) -> None:
        name = f"{record.task}__{record.split}__{record.doc_id}"
        self._dumped[name] += 1
        if self._dumped[name] > 1:  # repeats, rounds
            name += f"__{self._dumped[name]}"
        path = Path(str(self._options.dump_selection)) / f"{name}.npz"
        sample = {
            "task": record.task,
            "split": record.split,
            "doc_id": record.doc_id,
            "question": media.text,
            "family": self._family.name,
            "videos": media.videos,
        }
        try:
            write_selection(path, selection, sample)
        except OSError as error:
            logger.warning(f"dump_selection: {path} was not written ({error})")


def prompt_counts(selection: Selection) -> dict[str, int]:
    """Visual tokens before and after selection, tokens of the shortened prompt, and the positions that they span.

    The positions are those of prompts with videos alone: whether one without comes here depends on its batch.
    """
    counts = {
        "visual_tokens": selection.visual_tokens,
        "visual_tokens_kept": selection.kept_tokens,
        "input_tokens": len(selection.prompt),
    }
    if selection.visual_tokens:
        positions = selection.prompt.position_ids
        counts["position_span"] = int(positions.max() - positions.min()) + 1
    return counts
