"""The rows of the table: each score beside the paper's number and a baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lmms_flexselect.checkpoints import same_checkpoint
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores.expectation import ExpectedRun, read_expectation
from lmms_flexselect.tools.scores.paper import LONG, departures, published
from lmms_flexselect.tools.scores.results import read_runs
from lmms_flexselect.tools.scores.run_options import option_differences
from lmms_flexselect.tools.scores.runs import Run, Score, refuse_problems
from lmms_flexselect.tools.scores.samples import Samples
from lmms_flexselect.tools.scores.statistics import Difference, paired, stderr, unpaired

SAME_WITHIN = 1.0
"""Points: two runs whose difference is surely smaller are called the same."""
CLEAR_WITHIN = 2.0
"""Points: a score with a larger standard error tells nothing about the paper's number."""

_NAMED = 8  # options in a note


@dataclass
class Row:
    """One task of one run, compared.

    Attributes
    ----------
    run, score
        What was read.
    stderr
        In points; NaN where it is not known.
    paper, paper_verdict
        The paper's number, and whether it ``agrees``; or the score is ``above``, ``below``, or ``cannot tell``.
    baseline, difference, verdict
        The baseline's score, ours minus it, and what that says.
    notes
        What to know before reading a comparison as one.
    """

    run: Run
    score: Score
    stderr: float
    paper: float | None = None
    paper_verdict: str = ""
    baseline: float | None = None
    difference: Difference | None = None
    verdict: str = ""
    notes: list[str] = field(default_factory=list)


def compare(results: Iterable[Path | str], baseline: Path | str | None = None) -> list[Row]:
    """Read results, and compare them with the paper's and with a baseline: results, or an expectation file.

    Raises
    ------
    FlexSelectError
        If something cannot be read or is no score, or no row of the baseline is of a model and task of the results.
    """
    runs = read_runs(results)
    refuse_problems(runs)
    rows = [_row(run, score) for run in runs for name in run.scores for score in _with_long(run.scores[name])]
    if baseline is not None:
        others = _read_baseline(Path(baseline))
        for row in rows:
            _beside(row, others)
        if all(row.difference is None for row in rows):
            raise FlexSelectError(f"{baseline}: {_has(others)}; these are {_has(runs)}: nothing to compare")
    return rows


def _row(run: Run, score: Score) -> Row:
    row = Row(run, score, stderr(score))
    if score.unreadable is not None:
        row.notes.append(score.unreadable)
    if score.samples is not None and not score.samples.videos:
        row.notes.append("the standard error takes questions for independent: the samples do not name their videos")
    row.paper = published(run, score.task)
    if row.paper is not None:
        row.notes += departures(run, score.task)
        if score.n != score.of:
            row.notes.append(f"{score.n} questions, not all {score.of or ''}".rstrip())
        clear = score.n == score.of and row.stderr <= CLEAR_WITHIN
        against = unpaired(score.points, row.stderr, row.paper, 0.0, score.n)
        verdict = "above" if against.low > 0 else "below" if against.high < 0 else "agrees"
        row.paper_verdict = verdict if clear else "cannot tell"
    return row


def _with_long(score: Score) -> list[Score]:
    """A score, and behind VideoMME's that of its long videos."""
    samples = score.samples
    if "videomme" not in score.task:
        return [score]
    if samples is not None and samples.durations:
        durations = samples.durations
        long = samples.where(lambda position: durations[position] == "long")
        if not long.correct:
            return [score]
        points, n = 100 * long.score(), len(long.correct)
        part = replace(score, points=points, reported_stderr=None, n=n, samples=long, long_points=None)
    elif score.long_points is not None:
        part = replace(score, points=score.long_points, reported_stderr=None, n=0, long_points=None)
    else:
        return [score]
    return [score, replace(part, task=score.task + LONG, of=part.n if score.n == score.of else 0)]


def _read_baseline(place: Path) -> list[Run]:
    if place.suffix in (".yaml", ".yml"):
        return [_as_run(place, expected) for expected in read_expectation(place)]
    runs = read_runs([place])
    refuse_problems(runs)
    return runs


def _as_run(file: Path, expected: ExpectedRun) -> Run:
    scores = {
        task.task: Score(task.task, "", task.score, task.stderr, n=task.n, samples=task.samples)
        for task in expected.tasks
    }
    return Run(file, expected.model, expected.checkpoint, expected.selector, expected.options, scores)


def _beside(row: Row, others: list[Run]) -> None:
    """Fill in the baseline's part of a row."""
    task = row.score.task
    found = [(run, score) for run in others for each in run.scores.values() for score in _with_long(each)]
    found = [(run, score) for run, score in found if score.task == task and _same_model(run, row.run)]
    if not found:
        row.verdict = "not in the baseline"
        return
    other, theirs = _nearest(row.run, found)
    row.baseline = theirs.points
    differing = {
        **option_differences({"selector": other.selector or "-"}, {"selector": row.run.selector or "-"}),
        **option_differences(other.options, row.run.options),
    }
    if differing:
        said = [f"{name}={now} ({was})" for name, (was, now) in differing.items()]
        more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
        row.notes.append(f"other options than the baseline's, its in brackets: {', '.join(said[:_NAMED])}{more}")
    row.difference = _difference(row, theirs, other)
    row.verdict = row.difference.verdict(SAME_WITHIN)


def _same_model(one: Run, other: Run) -> bool:
    """Checkpoint and upstream's model class are the same, whether or not something is selected."""
    names = {run.model.removesuffix("_flexselect") for run in (one, other)}
    return len(names) == 1 and same_checkpoint(one.checkpoint, other.checkpoint)


def _nearest(run: Run, found: list[tuple[Run, Score]]) -> tuple[Run, Score]:
    """The baseline's run of the same selector and options; else of the same selector; else the only one."""
    for same in (
        [pair for pair in found if pair[0].identity()[2:] == run.identity()[2:]],
        [pair for pair in found if pair[0].selector == run.selector],
        found,
    ):
        if len(same) == 1:
            return same[0]
    names = ", ".join(f"{other.name} ({other.file})" for other, _ in found)
    raise FlexSelectError(f"the baseline has several runs to compare {run.name} with: {names}; give one")


def _difference(row: Row, theirs: Score, other: Run) -> Difference:
    ours = row.score
    if ours.samples is None or theirs.samples is None:
        row.notes.append("no paired test: there are no samples of both")
        if ours.n != theirs.n:
            row.notes.append(f"{ours.n} questions, the baseline's {theirs.n}")
        return unpaired(ours.points, row.stderr, theirs.points, stderr(theirs), min(ours.n, theirs.n))
    both = sorted(set(ours.samples.documents) & set(theirs.samples.documents))
    if not both:
        row.notes.append("no question is in both")
        return Difference(math.nan, math.nan, math.nan, math.nan, None, 0)
    if len(both) < max(ours.n, theirs.n):
        row.notes.append(f"difference over the {len(both)} questions of both")
    mine, its = _of(ours.samples, both), _of(theirs.samples, both)
    if mine.targets and its.targets and mine.targets != its.targets:
        raise FlexSelectError(f"{ours.task}: right answers differ between {row.run.file} and {other.file}: other data")
    return paired(mine, its)


def _of(samples: Samples, documents: list[int]) -> Samples:
    wanted = set(documents)
    return samples.where(lambda position: samples.documents[position] in wanted)


def _has(runs: list[Run]) -> str:
    return "; ".join(f"{run.name}: {', '.join(sorted(run.scores))}" for run in runs)
