"""``scores check``: whether results are what an expectation file says, and if not, why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores.expectation import ExpectedRun, ExpectedTask, read_expectation
from lmms_flexselect.tools.scores.results import read_runs
from lmms_flexselect.tools.scores.run_options import option_differences
from lmms_flexselect.tools.scores.runs import Run, Score, distinct_names

PASSED = ("same", "improved")
_SAME_PROMPTS = 1e-3  # tokens, on average
_ROUNDING = 1e-3  # points; an expectation file has four decimals


@dataclass
class Case:
    """One task of one expected run, checked.

    Attributes
    ----------
    run, task
        Names.
    recorded, tolerance
        In points.
    outcome
        ``same`` (within the tolerance) and ``improved`` pass; ``regression`` and ``too few samples`` fail; ``error``
        is something that cannot be compared: missing, of other options, NaN.
    reason
        Why, where that needs to be said: one line.
    score, p_value
        What it scores now, in points, and of the paired test; None where that is not known.
    """

    run: str
    task: str
    recorded: float
    tolerance: float
    outcome: str = "error"
    reason: str = ""
    score: float | None = None
    p_value: float | None = None

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


def check(results: Iterable[Path | str], expect: Path | str) -> Report:
    """Hold results to an expectation file.

    Results that cannot be read make a report of errors, so that there is one to show; an expectation file that cannot
    be read raises `FlexSelectError`.
    """
    expected = read_expectation(Path(expect))
    names = distinct_names(expected)
    try:
        runs = read_runs(results)
    except FlexSelectError as error:
        return Report([c for run, name in zip(expected, names, strict=True) for c in _errors(run, name, str(error))])
    pairs = _pair(expected, runs)
    cases = [c for (run, found), name in zip(pairs, names, strict=True) for c in _check_run(run, name, found, runs)]
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


def _case(name: str, task: ExpectedTask) -> Case:
    return Case(name, task.task, task.score, task.tolerance)


def _errors(expected: ExpectedRun, name: str, reason: str) -> list[Case]:
    return [replace(_case(name, task), reason=reason) for task in expected.tasks]


def _check_run(expected: ExpectedRun, name: str, run: Run | None, runs: list[Run]) -> list[Case]:
    if run is None:
        found = ", ".join(dict.fromkeys(other.name for other in runs))
        return _errors(expected, name, f"no such run; found: {found}")
    if differences := option_differences(expected.options, run.options):
        changed = "; ".join(f"{option} was {was}, now {now}" for option, (was, now) in differences.items())
        return _errors(expected, name, f"other options: {changed} ({run.file})")
    return [_check_task(_case(name, task), task, run) for task in expected.tasks]


def _check_task(case: Case, expected: ExpectedTask, run: Run) -> Case:
    """The case, filled in."""
    score = run.scores.get(expected.task)
    if score is None:
        case.reason = f"not in {run.file}, which has {', '.join(sorted(run.scores))}"
    elif score.problem is not None or score.unreadable is not None:
        case.reason = score.problem or score.unreadable or ""
    elif score.n != expected.n:
        case.score, case.outcome = score.points, "too few samples"
        case.reason = f"{score.n} questions, recorded were {expected.n}: run it with the same --limit ({run.file})"
    elif score.samples is not None and expected.questions not in (None, score.samples.fingerprint):
        case.score = score.points
        case.reason = f"questions, prompts or right answers are not those recorded; if meant, record anew ({run.file})"
    elif changed := _changed_prompts(expected, score):
        case.score = score.points
        case.reason = f"the model reads other prompts: {changed}; if meant, record anew ({run.file})"
    else:
        case.score = score.points
        _judge(case, expected, score)
    return case


def _changed_prompts(expected: ExpectedTask, score: Score) -> str:
    """What is not as recorded; a right answer may still come of it, of a few questions or of easy ones."""
    was, now = expected.prompts, score.prompts
    changed = [name for name in was if name in now and abs(was[name] - now[name]) > _SAME_PROMPTS]
    return ", ".join(f"{name} was {was[name]:g}, now {now[name]:g}" for name in changed)


def _judge(case: Case, expected: ExpectedTask, score: Score) -> None:
    from lmms_flexselect.tools.scores.statistics import paired, questions_needed, stderr, unpaired

    theirs = expected.samples
    if score.samples is None or theirs is None or score.samples.documents != theirs.documents:
        theirs = None
    if theirs is not None and score.samples is not None:
        difference = paired(score.samples, theirs)
        of_what = "the paired difference"
    else:
        difference = unpaired(score.points, stderr(score), expected.score, 0.0, score.n)
        of_what = f"the score: {'no answers were recorded' if expected.samples is None else 'it has no samples'}"
    case.p_value = difference.p_value
    points = score.points - expected.score
    if points < -expected.tolerance - _ROUNDING:
        case.outcome, case.reason = "regression", f"{-points:.2f} points lower, more than {expected.tolerance:g}"
    elif points > expected.tolerance + _ROUNDING and difference.low > 0:
        case.outcome, case.reason = "improved", f"{points:.2f} points higher: record anew, so that it is held"
    elif difference.stderr <= expected.tolerance:
        case.outcome = "same"
    else:
        known = f"{difference.stderr:.2f} points, more than the tolerance"
        error = known if math.isfinite(difference.stderr) else "not known, for want of videos"
        case.outcome, case.reason = "too few samples", f"the standard error is {error} (of {of_what})"
        if needed := questions_needed(expected.tolerance, score.n, score, theirs):
            case.reason += f"; about {needed} questions would do"
