"""What a run measured, sample by sample, and how it reaches lmms-eval's results file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch.distributed as dist

DocumentKey = tuple[str, str, int]  # task, split, document number


class DocumentLog(dict):
    """A model's `task_dict` that remembers which documents were read.

    Upstream's loops look every document up as ``task_dict[task][split][doc_id]``, in the order of the batch, right
    before they call the model. That is the one place where they say whose turn it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: list[DocumentKey] = []

    def __getitem__(self, task: str) -> Any:
        return _Lookup(super().__getitem__(task), self._read, (task,))

    def last(self, rows: int) -> list[DocumentKey | None]:
        """Keys of the last `rows` documents read; None for a row that did not come through here."""
        read: list[DocumentKey | None] = [*self._read[max(0, len(self._read) - rows) :]]
        self._read.clear()
        return [None] * (rows - len(read)) + read


class _Lookup:
    def __init__(self, container: Any, read: list[DocumentKey], key: tuple[Any, ...]) -> None:
        self._container, self._read_log, self._key = container, read, key

    def __getitem__(self, item: Any) -> Any:
        key = (*self._key, item)
        if len(key) < 3:
            return _Lookup(self._container[item], self._read_log, key)
        if not isinstance(item, slice):
            self._read_log.append((key[0], key[1], int(item)))
        return self._container[item]

    def __len__(self) -> int:
        return len(self._container)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._container)  # walking through a data set is nobody's turn

    def __contains__(self, item: Any) -> bool:
        return item in self._container

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._container, name)


@dataclass
class PreparedRow:
    """What was read for one prompt of a batch.

    Attributes
    ----------
    text
        The last message's, without its media.
    videos
        Path and metadata of each video (``frames_indices``, ``fps``, …).
    seconds
        Waited for frames, and spent on images.
    error
        Why a video could not be read; the prompt then has no media and its answer is empty.
    """

    text: str = ""
    videos: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None


def text_of(message: dict[str, Any]) -> str:
    """A chat message without its media."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


@dataclass
class SampleRecord:
    """One answered prompt.

    Attributes
    ----------
    task, split, doc_id
        Which document; empty and -1 where a prompt did not come from a task.
    video_seconds
        How long the sample waited for its frames: what of decoding and resizing was not done ahead (see
        `Prefetcher`), all of it with ``prefetch_videos=0``.
    time_to_first_token_seconds
        From the call of the model to its first token: vision tower, selection, prefill. Rows of one batch
        share it.
    selector_seconds
        The part of it that selection took.
    generate_seconds
        The row's share of the whole call.
    visual_tokens, visual_tokens_kept
        Before and after selection.
    input_tokens, output_tokens
        Prompt as the language model read it, and answer.
    position_span
        Positions from the prompt's first to its last, as the language model read it: longer than the prompt where the
        tokens kept stay at the positions they had; 0 where upstream made the positions.
    peak_memory_gib
        Peak of the call: allocated GPU memory, or the process's resident memory on a CPU.
    error
        Why the sample was answered empty, or None.
    """

    task: str
    split: str
    doc_id: int
    video_seconds: float
    time_to_first_token_seconds: float
    selector_seconds: float
    generate_seconds: float
    visual_tokens: int
    visual_tokens_kept: int
    input_tokens: int
    output_tokens: int
    peak_memory_gib: float
    position_span: int = 0
    error: str | None = None

    @property
    def key(self) -> DocumentKey:
        """Task, split and document number."""
        return self.task, self.split, self.doc_id


_AVERAGED = (
    "video_seconds",
    "time_to_first_token_seconds",
    "selector_seconds",
    "visual_tokens",
    "visual_tokens_kept",
    "input_tokens",
    "position_span",
)


def summarize(records: Iterable[SampleRecord]) -> dict[str, float]:
    """Means over the samples that were answered, the largest memory peak, and how many were not."""
    records = list(records)
    answered = [r for r in records if r.error is None]
    summary: dict[str, float] = {"samples": len(records), "unreadable_videos": len(records) - len(answered)}
    if answered:
        summary |= {name: fmean(getattr(r, name) for r in answered) for name in _AVERAGED}
        summary["peak_memory_gib"] = max(r.peak_memory_gib for r in answered)
    return summary


_VERSIONS = ("lmms_flexselect", "lmms_eval", "transformers", "torch")


def results_block(options: dict[str, Any], records: list[SampleRecord]) -> dict[str, Any]:
    """What goes into the results file: options, versions, measurements per task, and the samples answered empty.

    lmms-eval blanks out values in there whose names end like a secret's (``…_token``, ``…_key``): no name here does.
    """
    tasks = sorted({r.task for r in records})
    failed = ("task", "split", "doc_id", "error")
    return {
        "options": options,
        "versions": {name: version(name.replace("_", "-")) for name in _VERSIONS},
        "overall": summarize(records),
        "by_task": {task: summarize(r for r in records if r.task == task) for task in tasks},
        "unreadable": [{k: v for k, v in asdict(r).items() if k in failed} for r in records if r.error],
    }


def gather(records: list[SampleRecord]) -> list[SampleRecord]:
    """Records of all processes, on every one of them; a sample answered twice (padding) counts once."""
    everyone = [records]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, records)
    together = [r for part in everyone for r in part]
    of_tasks = {r.key: r for r in together if r.doc_id >= 0}
    return list(of_tasks.values()) + [r for r in together if r.doc_id < 0]
