"""A run and its scores: what everything else here is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores.samples import Samples


@dataclass
class Score:
    """How one run did one task.

    Attributes
    ----------
    task, metric
        lmms-eval's names.
    points
        0..100; NaN where there is none.
    reported_stderr
        The results file's own standard error in points, clustered where it has that; None where it has none.
    n, of
        Questions asked, and questions that the task has; 0 where that is not known.
    long_points
        VideoMME by the paper's protocol: the score over long videos, in points; else None.
    samples
        Answers one by one, where the run logged them.
    prompts
        What was read of a question, on average: visual tokens before and after selection, tokens, positions. Empty
        where it was not measured.
    problem
        Why this is no score to compare with anything; None if it is one.
    unreadable
        How many videos could not be read, and why the first; None if all could.
    """

    task: str
    metric: str
    points: float
    reported_stderr: float | None = None
    n: int = 0
    of: int = 0
    long_points: float | None = None
    samples: Samples | None = None
    prompts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    unreadable: str | None = None


class Named(Protocol):
    """A run, found or expected."""

    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Model, checkpoint and selector, for people."""


@dataclass
class Run:
    """One results file.

    Attributes
    ----------
    file
        Where it was read.
    model, checkpoint, selector
        ``--model``, the checkpoint's name without folders, the selector; a model of lmms-eval's own has none: ``""``.
    options
        What else may change an answer, resolved, by name.
    scores
        By task.
    versions
        Of the software, for information.
    """

    file: Path
    model: str
    checkpoint: str
    selector: str
    options: dict[str, Any]
    scores: dict[str, Score]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model, checkpoint and selector, for people."""
        return " ".join(part for part in (self.model, self.checkpoint, self.selector) if part)

    def identity(self) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
        """What makes two runs the same run."""
        return self.model, self.checkpoint, self.selector, tuple(sorted((k, str(v)) for k, v in self.options.items()))


def refuse_problems(runs: Iterable[Run]) -> None:
    """Raise `FlexSelectError` for the first score that is none."""
    for run in runs:
        for score in run.scores.values():
            if score.problem is not None:
                raise FlexSelectError(score.problem)


def distinct_names(runs: Sequence[Named]) -> list[str]:
    """Each run's name; behind it, where runs share one, the options that differ among those."""
    sharing: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        sharing.setdefault(run.name, []).append(run.options)

    def distinct(run: Named) -> str:
        others = sharing[run.name]
        names = sorted({name for options in others for name in options})
        differing = [name for name in names if len({str(options.get(name)) for options in others}) > 1]
        return " ".join([run.name, *(f"{name}={run.options.get(name)}" for name in differing)])

    return [distinct(run) for run in runs]
