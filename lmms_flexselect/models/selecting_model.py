"""The model that upstream's loops talk to: upstream's own, with the visual tokens of videos selected first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from loguru import logger
from torch import Tensor
from transformers import StoppingCriteriaList

from lmms_flexselect.dump import write_selection
from lmms_flexselect.method.flexselect import FlexSelect, Selection
from lmms_flexselect.models.records import DocumentKey, PreparedRow, SampleRecord
from lmms_flexselect.models.requests import Paths
from lmms_flexselect.models.upstream import EscapeUpstream
from lmms_flexselect.options import FlexSelectOptions
from lmms_flexselect.runtime.measure import FirstTokenClock, now, peak_memory


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


class BatchSelectingModel(SelectingModel):
    """Called as upstream calls its model, with what our processor made of a batch, `PreparedRow`s among it."""

    _inputs: ClassVar[frozenset[str]]
    """Names of what the processor makes."""
    _visual_token: ClassVar[str]
    """What the configuration calls the placeholder of a visual token."""

    def generate(self, **kwargs: Any) -> Tensor:
        """transformers' ``generate``, over prompts shortened to the token budget.

        Returns
        -------
        Tensor
            ``(batch, prompt + new)`` int64: the *unshortened* `input_ids` with the new tokens behind them, since
            upstream cuts the prompt off by its length. The answer of a row whose video could not be read is padding.

        Raises
        ------
        EscapeUpstream
            For whatever goes wrong: some of upstream's loops would make an empty answer of any `Exception`.
        """
        inputs = {name: kwargs.pop(name) for name in list(kwargs) if name in self._inputs}
        ids = inputs["input_ids"]
        rows: list[PreparedRow] = kwargs.pop("rows")
        try:
            return torch.cat([ids, self._generated(inputs, rows, **kwargs).to(ids.device)], dim=1)
        except Exception as error:
            raise EscapeUpstream(error) from error

    def _answer(self, inputs: Mapping[str, Any], **kwargs: Any) -> Answers:
        if not self._passes_through(inputs):
            return super()._answer(inputs, **kwargs)
        ids = inputs["input_ids"]
        new = self._family.model.generate(**self._upstreams(inputs), **kwargs)[:, ids.shape[1] :]
        visual = (ids == getattr(self._family.model.config, self._visual_token)).sum(1).tolist()
        real = inputs.get("attention_mask", torch.ones_like(ids)).sum(1).tolist()
        counts = [
            {"visual_tokens": v, "visual_tokens_kept": v, "input_tokens": n} for v, n in zip(visual, real, strict=True)
        ]
        return Answers(new, counts, [None] * len(ids), 0.0)

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the request is upstream's own business."""
        raise NotImplementedError

    def _upstreams(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs that the model itself takes."""
        return inputs
