"""Accuracy over one option, from results files: curves of runs that differ in nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import OptionError
from lmms_flexselect.tools.scores.paper import frames_options
from lmms_flexselect.tools.scores.results import read_runs
from lmms_flexselect.tools.scores.runs import Run, distinct_names, refuse_problems
from lmms_flexselect.tools.scores.statistics import stderr

FRAMES = "frames"
"""Stands for whatever each family calls the option that says how many frames are read."""

# What a selector's folder tells by its name, the last of such words in it: "size_1_8b" and "1.8B", "share_05" (percent)
# and "share_0.05".
_FROM_NAME = {
    "selector_size": re.compile(r"(\d+(?:[._]\d+)?)b(?![a-z0-9])", re.IGNORECASE),
    "share": re.compile(r"share[_=-]?(\d+(?:\.\d+)?)", re.IGNORECASE),
}
# Selectors that an option changes nothing for: a level, not a curve.
_WITHOUT_EFFECT = {
    "reference_layer": {"none", "uniform", "random", "lite"},
    "token_budget": {"none"},
    "max_frames_per_set": {"none"},
    "selector_size": {"none", "uniform", "random", "flexselect"},
    "share": {"none", "uniform", "random", "flexselect"},
}


@dataclass(frozen=True)
class Point:
    """One run's score: `value` of the option, `points` of 100 with their standard error, `n` questions."""

    value: Any
    points: float
    stderr: float
    n: int


@dataclass
class Curve:
    """Runs that differ in the option alone, on one task.

    Attributes
    ----------
    task, name
        lmms-eval's, and what the runs have in common.
    points
        By the option's value, ascending.
    level
        Whether the option says nothing to these runs, so that this is one height.
    """

    task: str
    name: str
    points: list[Point] = field(default_factory=list)
    level: bool = False


def curves(results: Iterable[Path | str], over: str, at: Mapping[str, float] | None = None) -> list[Curve]:
    """Read results and put those together that differ in one option.

    Parameters
    ----------
    results
        Files, or folders that are searched.
    over
        An option, ``frames`` (each family has its own name for it), ``selector``, or what the name of a FlexSelect-Lite
        selector tells: ``selector_size`` in billions of parameters, ``share`` of the training data in percent.
    at
        The size or share of selectors whose names do not tell, by name.

    Raises
    ------
    FlexSelectError
        If results cannot be read, or no two runs differ in this option alone.
    """
    runs = read_runs(results)
    refuse_problems(runs)
    groups: dict[Any, list[tuple[Run, Any]]] = {}
    for run in runs:
        rest, value = _without(run, over, at or {})
        groups.setdefault(rest.identity(), []).append((replace(rest, scores=run.scores), value))
    for (_, _, selector, _), members in groups.items():
        if selector in _WITHOUT_EFFECT.get(over, ()) and len(members) > 1:
            raise OptionError(
                f"--over {over}: says nothing to {members[0][0].name}, which is there {len(members)} times"
            )
    _check_varies(groups, runs, over)
    names = distinct_names([members[0][0] for members in groups.values()])
    made: dict[tuple[str, str], Curve] = {}
    for name, members in zip(names, groups.values(), strict=True):
        level = members[0][0].selector in _WITHOUT_EFFECT.get(over, ())
        for run, value in members:
            for task, score in run.scores.items():
                curve = made.setdefault((task, name), Curve(task, name, level=level))
                curve.points.append(Point(value, score.points, stderr(score), score.n))
    for curve in made.values():
        curve.points.sort(key=lambda point: (isinstance(point.value, str), point.value))
    # Numbers in names as numbers.
    return sorted(made.values(), key=lambda c: [(p.isdigit(), p.zfill(9)) for p in re.split(r"(\d+)", c.task)])


def _without(run: Run, over: str, at: Mapping[str, float]) -> tuple[Run, Any]:
    """The run without the option, and its value."""
    value: Any
    if over == "selector":
        names, value = {"selector_path"}, run.selector or "-"
        run = replace(run, selector="")
    elif over in _FROM_NAME:
        names, value = {"selector_path"}, _from_name(run, over, at)
    else:
        names = set(frames_options()) if over == FRAMES or over in frames_options() else {over}
        value = next((run.options[name] for name in sorted(names) if name in run.options), None)
    rest = {name: other for name, other in run.options.items() if name not in names}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return replace(run, options=rest), value if number else str(value)


def _from_name(run: Run, over: str, at: Mapping[str, float]) -> float | str:
    if run.selector in _WITHOUT_EFFECT[over]:
        return "-"
    name = str(run.options.get("selector_path"))
    if name in at:
        return at[name]
    if not (found := _FROM_NAME[over].findall(name)):
        raise OptionError(f"--over {over}: the name {name} does not tell it; add --at {name}=NUMBER")
    number = float(found[-1].replace("_", "."))
    return 100 * number if over == "share" and "." in found[-1] else number


def _check_varies(groups: Mapping[Any, Sequence[tuple[Run, Any]]], runs: list[Run], over: str) -> None:
    if any(len({value for _, value in members}) > 1 for members in groups.values()):
        return
    values = sorted({str(value) for members in groups.values() for _, value in members} - {"-", "None"})
    names = sorted({name for run in runs for name in run.options})
    differing = [name for name in names if len({str(run.options.get(name)) for run in runs}) > 1]
    if len({run.selector for run in runs}) > 1:
        differing.append("selector")
    others = (
        f"these {len(runs)} runs differ in {', '.join(differing)}" if differing else "these runs differ in no option"
    )
    if len(values) > 1:
        raise OptionError(f"--over {over}: no two runs differ in it alone; {others}")
    raise OptionError(f"--over {over}: {f'is {values[0]} in every run' if values else 'no run has it'}; {others}")
