"""What a run answered, question by question: lmms-eval's samples files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lmms_flexselect.errors import FlexSelectError

_T = TypeVar("_T")

# Tasks whose score is the mean over so many question types, whatever is asked of each: MLVU's M-Avg.
_QUESTION_TYPES = {"mlvu_dev": 7, "mlvu_test": 9, "flexselect_paper_mlvu": 7}


@dataclass
class Samples:
    """One task's answers, in the order of the documents.

    Attributes
    ----------
    documents
        lmms-eval's document numbers, ascending.
    correct
        Of each: 0..1.
    videos
        Which video each is about, where the samples tell.
    durations
        VideoMME's ``short``, ``medium``, ``long``, where the samples tell.
    types
        Question types, for tasks whose score is the mean of theirs; else empty.
    num_types
        How many of them the task has, also where fewer were asked.
    targets
        The right answers as lmms-eval writes them; empty where only `correct` was recorded.
    fingerprint
        Of questions, prompts and right answers: eight hexadecimal digits.
    """

    documents: list[int]
    correct: list[float]
    videos: list[Hashable] = field(default_factory=list)
    durations: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    num_types: int = 0
    targets: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def weights(self) -> list[float]:
        """What each question counts, so that the mean of ``weight * correct`` is the task's score."""
        if not self.types:
            return [1.0] * len(self.correct)
        counts = Counter(self.types)
        return [len(self.types) / (self.num_types * counts[name]) for name in self.types]

    def score(self) -> float:
        """The task's score, 0..1."""
        return sum(w * c for w, c in zip(self.weights(), self.correct, strict=True)) / len(self.correct)

    def where(self, keep: Callable[[int], bool]) -> Samples:
        """Those at the positions that `keep` says yes to."""

        def kept(values: list[_T]) -> list[_T]:
            return [value for position, value in enumerate(values) if keep(position)]

        return Samples(
            kept(self.documents),
            kept(self.correct),
            videos=kept(self.videos),
            durations=kept(self.durations),
            types=kept(self.types),
            num_types=self.num_types,
            targets=kept(self.targets),
        )


def read_samples(
    path: Path, task: str, metric: str, config: Mapping[str, Any], task_hash: str | None = None
) -> Samples | None:
    """Read a samples file; None if its samples have no score of their own (captions, say).

    Parameters
    ----------
    path
        ``…_samples_TASK.jsonl``.
    task, metric
        Whose, and the field that holds what the task's `process_results` said.
    config
        The task's: under which name that field may hold the score (``score_key``) and the video (``cluster_key``).
    task_hash
        lmms-eval's, from the results file; None to not compare.

    Raises
    ------
    FlexSelectError
        If a line is not a sample, a document is there twice, or the file is not the one that the results file was
        made with.
    """
    lines = [_sample(path, number, line) for number, line in enumerate(_lines(path), 1)]
    if not lines:
        raise FlexSelectError(f"{path}: no samples in it")
    if task_hash is not None and _task_hash(lines) != task_hash:
        raise FlexSelectError(f"{path}: does not fit its results file: the hash of its {len(lines)} documents is other")
    lines.sort(key=lambda sample: sample["doc_id"])
    documents = [sample["doc_id"] for sample in lines]
    if twice := [document for document, count in Counter(documents).items() if count > 1]:
        raise FlexSelectError(f"{path}: document {twice[0]} is in it twice")
    said = [sample.get(metric) for sample in lines]
    correct = [_correct(value, str(config.get("score_key") or "score")) for value in said]
    if None in correct:
        return None
    types = _column(said, "task_type") if task in _QUESTION_TYPES else []
    if task in _QUESTION_TYPES and not types:
        raise FlexSelectError(f"{path}: no task_type in {metric}, which the score of {task} is a mean over")
    return Samples(
        documents,
        [value for value in correct if value is not None],
        videos=_videos(said, str(config.get("cluster_key") or "")),
        durations=_column(said, "duration"),
        types=types,
        num_types=_QUESTION_TYPES.get(task, 0),
        targets=[str(sample.get("target")) for sample in lines],
        fingerprint=_fingerprint(lines),
    )


def read_answers(path: Path) -> dict[int, tuple[str, str]]:
    """What was answered and what is right, by document; of a question asked more than once the first answer.

    Raises
    ------
    FlexSelectError
        If a line is not a sample.
    """
    answers = {}
    for number, line in enumerate(_lines(path), 1):
        sample = _sample(path, number, line)
        said = sample.get("filtered_resps", sample.get("resps"))
        while isinstance(said, list) and said:
            said = said[0]
        answers[sample["doc_id"]] = (str(said), str(sample.get("target")))
    return answers


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): questions may hold other line separators than "\n", which ends a sample alone.
        return [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FlexSelectError(f"{path}: cannot be read ({error})") from None


def _sample(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError:
        raise FlexSelectError(f"{path}: line {number} is not whole JSON: was the run cut off?") from None
    if not isinstance(sample, dict) or not isinstance(sample.get("doc_id"), int):
        raise FlexSelectError(f"{path}: line {number} is not one of lmms-eval's samples: it has no doc_id")
    return sample


def _correct(said: Any, score_key: str) -> float | None:
    """0..1 out of what a task's `process_results` returned; None where it says nothing of the kind."""
    if isinstance(said, (bool, int, float)):
        return float(said) if 0 <= said <= 1 else None
    if isinstance(said, dict):
        for key in (score_key, "score"):
            if isinstance(said.get(key), (bool, int, float)):
                return _correct(said[key], score_key)
        for key in ("pred_answer", "parsed_pred"):  # MLVU, LongVideoBench
            if key in said and "answer" in said:
                return float(said[key] == said["answer"])
    return None


def _column(said: Sequence[Any], key: str) -> list[Any]:
    """A field of all samples; empty unless each has it."""
    values = [value.get(key) if isinstance(value, dict) else None for value in said]
    return [] if None in values else values


def _videos(said: Sequence[Any], cluster_key: str) -> list[Hashable]:
    if not cluster_key and _column(said, "parsed_pred"):  # LongVideoBench names a question after its video: VIDEO_0
        return [str(name).rpartition("_")[0] for name in _column(said, "id")]
    return _column(said, cluster_key)


def _task_hash(samples: Sequence[dict[str, Any]]) -> str:
    """As lmms-eval computes ``task_hashes``; in 0.7.3 documents are gone by then, so it tells little but how many."""
    named = "".join(f"sample_{number}{sample.get('doc_hash', '')}" for number, sample in enumerate(samples))
    return hashlib.sha256(named.encode()).hexdigest()


def _fingerprint(samples: Sequence[dict[str, Any]]) -> str:
    questions = [(sample["doc_id"], sample.get("input"), sample.get("target")) for sample in samples]
    return hashlib.sha256(json.dumps(questions, sort_keys=True).encode()).hexdigest()[:8]
