"""``scores check``: whether results are what an expectation file says, and if not, why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.scores.expectation import ExpectedRun, ExpectedTask, read_expectation
from lmms_flexselect.scores.results import Run, Score, option_differences, read_runs

PASSED = ("same", "improved")


@dataclass
class Case:
    """One task of one expected run, checked.

    Attributes
    ----------
    run, task
        Names.
    outcome
        ``same`` (within the tolerance) and ``improved`` pass; ``regression`` and ``too few samples`` fail; ``error``
        is something that cannot be compared: missing, of other options, NaN.
    message
        Numbers and reason, one line.
    """

    run: str
    task: str
    outcome: str
    message: str

    @property
    def passed(self) -> bool:
        """Whether it may stand."""
        return self.outcome in PASSED


@dataclass
class Report:
    """All cases of a check, in the expectation file's order, and what it left alone."""

    cases: list[Case]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every expected task is there and no worse."""
        return bool(self.cases) and all(case.passed for case in self.cases)


def check(results: Iterable[Path | str], expect: Path) -> Report:
    """Hold results to an expectation file.

    Results that cannot be read make a report of errors, so that there is one to show; an expectation file that cannot
    be read raises `FlexSelectError`.
    """
    expected = read_expectation(expect)
    try:
        runs = read_runs(results)
    except FlexSelectError as error:
        return Report([Case(run.name, task.task, "error", str(error)) for run in expected for task in run.tasks])
    pairs = _pair(expected, runs)
    cases = [case for run, found in pairs for case in _check_run(run, found, runs)]
    report = Report(cases)
    for run in runs:
        matched = [one for one, found in pairs if found is run]
        known = {task.task for one in matched for task in one.tasks}
        if extra := sorted(set(run.scores) - known):
            what = ", ".join(extra) if matched else "this run"
            report.notes.append(f"{run.name}: {what} is not in {expect}, and not checked ({run.file})")
    return report


def _pair(expected: list[ExpectedRun], runs: list[Run]) -> list[tuple[ExpectedRun, Run | None]]:
    """Each expected run with the one found of its name whose options differ least; no run is taken twice."""
    distances = sorted(
        (len(option_differences(one.options, run.options)), i, j)
        for i, one in enumerate(expected)
        for j, run in enumerate(runs)
        if one.name == run.name
    )
    taken: dict[int, int] = {}
    for _, i, j in distances:
        if i not in taken and j not in taken.values():
            taken[i] = j
    return [(one, runs[taken[i]] if i in taken else None) for i, one in enumerate(expected)]


def _check_run(expected: ExpectedRun, run: Run | None, runs: list[Run]) -> list[Case]:
    if run is None:
        found = ", ".join(dict.fromkeys(other.name for other in runs))
        return [Case(expected.name, task.task, "error", f"no such run; found: {found}") for task in expected.tasks]
    if differences := option_differences(expected.options, run.options):
        text = "; ".join(f"{name} was {was}, now {now}" for name, (was, now) in differences.items())
        return [Case(expected.name, task.task, "error", f"other options: {text}") for task in expected.tasks]
    return [Case(expected.name, task.task, *_check_task(task, run)) for task in expected.tasks]


def _check_task(expected: ExpectedTask, run: Run) -> tuple[str, str]:
    """Outcome and message."""
    score = run.scores.get(expected.task)
    if score is None:
        return "error", f"not in {run.file}, which has {', '.join(sorted(run.scores))}"
    if score.problem is not None:
        return "error", score.problem
    if score.n != expected.n:
        return "too few samples", f"{score.n} questions, recorded were {expected.n}: run it with the same --limit"
    if score.samples is not None and expected.questions not in (None, score.samples.fingerprint):
        return "error", "other questions, prompts or right answers than those recorded: record anew if that is meant"
    return _compare(expected, score)


def _compare(expected: ExpectedTask, score: Score) -> tuple[str, str]:
    from lmms_flexselect.scores.statistics import paired, questions_needed, stderr, unpaired

    theirs = expected.samples
    if score.samples is None or theirs is None or score.samples.documents != theirs.documents:
        theirs = None
    if theirs is not None and score.samples is not None:
        difference = paired(score.samples, theirs)
        how = "paired"
    else:
        difference = unpaired(score.points, stderr(score), expected.score, 0.0, score.n)
        how = "of the score: no answers to pair" if expected.samples is None else "of the score: no samples file"
    points = score.points - expected.score
    text = f"{score.points:.2f}, recorded {expected.score:.2f}: {points:+.2f} points"
    if difference.p_value is not None:
        text += f" (p={difference.p_value:.3g})"
    text += f", tolerance {expected.tolerance:g}"
    if points < -expected.tolerance - 1e-3:
        return "regression", text
    if points > expected.tolerance + 1e-3 and difference.low > 0:
        return "improved", f"{text}; record anew to hold on to it"
    if not difference.stderr <= expected.tolerance:
        needed = questions_needed(expected.tolerance, score.n, score, theirs)
        error = f"standard error {difference.stderr:.2f} ({how})" if math.isfinite(difference.stderr) else "one video"
        more = f"; about {needed} questions would do" if needed else ""
        return "too few samples", f"{text}; {error}{more}"
    return "same", text
