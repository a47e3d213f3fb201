"""What a run measured, sample by sample, and how it reaches lmms-eval's results file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import fmean
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts

DocumentKey = tuple[str, str, int]  # task, split, document number


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
class Answer(GenerationResult):
    """What lmms-eval's evaluator gets for a request, of any kind: it hands `text` on as it is, but bare pairs as text.

    Attributes
    ----------
    text
        A text; the list of all rounds'; or a pair (see `Likelihood`).
    error
        Why there is no answer to at least one of its prompts, so that it must not be kept for another run.
    """

    error: str | None = None


class Likelihood(Answer):
    """Loss, and whether the text is the likeliest: a pair to whoever asked, as `lmms.loglikelihood` promises."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.text)


def answer_of(kind: str, given: Any, records: Sequence[SampleRecord] = ()) -> Answer:
    """What upstream's loop, or a cache, gives for a request, with the tokens counted over all its prompts."""
    given = given.text if isinstance(given, GenerationResult) else given
    counts = TokenCounts(sum(r.input_tokens for r in records), sum(r.output_tokens for r in records))
    error = next((r.error for r in records if r.error is not None), None)
    made = Likelihood if kind == "loglikelihood" else Answer
    text = given if isinstance(given, str) else tuple(given) if kind == "loglikelihood" else list(given)
    return made(text, counts if records else None, error)


@dataclass
class SampleRecord:
    """One answered prompt.

    Attributes
    ----------
    task, split, doc_id
        Which document. One may have several records: repeats, rounds, the continuations of a multiple choice.
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
        tokens kept stay at the positions they had; None of a prompt without videos, and where upstream made the
        positions.
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
    position_span: int | None = None
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
    """Means over the prompts that were answered and have the value, the largest memory peak, and how many were not."""
    records = list(records)
    answered = [r for r in records if r.error is None]
    summary: dict[str, float] = {"samples": len(records), "unreadable_videos": len(records) - len(answered)}
    for name in _AVERAGED:
        if measured := [value for r in answered if (value := getattr(r, name)) is not None]:
            summary[name] = fmean(measured)
    if answered:
        summary["peak_memory_gib"] = max(r.peak_memory_gib for r in answered)
    return summary


_VERSIONS = ("lmms_flexselect", "lmms_eval", "transformers", "torch")


def results_block(options: dict[str, Any], records: list[SampleRecord]) -> dict[str, Any]:
    """What goes into the results file: options, versions, measurements per task, and the documents answered empty.

    lmms-eval blanks out values in there whose names end like a secret's (``…_token``, ``…_key``): no name here does.
    """
    tasks = sorted({r.task for r in records})
    failed = {r.key: r.error for r in records if r.error is not None}
    return {
        "options": options,
        "versions": {name: version(name.replace("_", "-")) for name in _VERSIONS},
        "overall": summarize(records),
        "by_task": {task: summarize(r for r in records if r.task == task) for task in tasks},
        "unreadable": [{"task": t, "split": s, "doc_id": n, "error": why} for (t, s, n), why in failed.items()],
    }
