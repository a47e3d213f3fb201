"""Expectation files: what a run scored, to hold later runs to. Readable, and the same text for the same results."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.scores.results import Run, Score, read_runs, refuse_problems
from lmms_flexselect.scores.samples import Samples

DEFAULT_TOLERANCE = 2.0
_LINE = 100

_HEAD = """\
# Written by `lmms-flexselect scores record`; `lmms-flexselect scores check RESULTS --expect THIS_FILE` holds results to
# it. Scores, standard errors and tolerances are points of 100. A tolerance may be edited; the word `any` instead of an
# option's value allows every value. `correct` has a digit for each question, in the order of `documents`.
"""


@dataclass
class ExpectedTask:
    """What one task is held to.

    Attributes
    ----------
    task
        lmms-eval's name.
    score, tolerance
        In points; a later score may be lower by `tolerance`.
    n
        Questions.
    questions
        Fingerprint of `Samples`; None where no samples were logged.
    samples
        Which questions were answered right; None where that was not recorded.
    """

    task: str
    score: float
    tolerance: float
    n: int
    questions: str | None
    samples: Samples | None


@dataclass
class ExpectedRun:
    """One run and its tasks; attributes as `Run`'s."""

    model: str
    checkpoint: str
    selector: str
    options: dict[str, Any]
    tasks: list[ExpectedTask]

    @property
    def name(self) -> str:
        """As `Run`'s."""
        return " ".join(part for part in (self.model, self.checkpoint, self.selector) if part)


def record(
    results: Iterable[Path | str],
    output: Path,
    tolerance: float = DEFAULT_TOLERANCE,
    by_task: Mapping[str, float] | None = None,
    with_samples: bool = True,
) -> list[Run]:
    """Write an expectation file.

    Parameters
    ----------
    results
        Results files, or folders of them.
    output
        File to write; an existing one is replaced as a whole.
    tolerance
        How many points (of 100) a later score may be lower.
    by_task
        Other tolerances for single tasks.
    with_samples
        Record which questions were answered right, where the runs logged them, so that the check is a paired test.

    Returns
    -------
    The runs recorded, in the file's order.
    """
    runs = sorted(read_runs(results), key=lambda run: (run.model, run.checkpoint, run.selector, str(run.options)))
    refuse_problems(runs)
    by_task = dict(by_task or {})
    for name, points in {"tolerance": tolerance, **by_task}.items():
        if not 0 <= points < 100:
            raise FlexSelectError(f"{name}={points}: a tolerance is of 0 to 100 points")
    if unknown := sorted(set(by_task) - {task for run in runs for task in run.scores}):
        raise FlexSelectError(f"a tolerance for {unknown[0]}, which these results do not have")
    content = {"versions": _versions(runs)} if _versions(runs) else {}
    blocks = [_run_block(run, tolerance, by_task, with_samples) for run in runs]
    text = _HEAD + yaml.safe_dump({**content, "runs": blocks}, sort_keys=False, width=110, allow_unicode=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.{os.getpid()}")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(output)
    return runs


def _versions(runs: list[Run]) -> dict[str, str]:
    together: dict[str, set[str]] = {}
    for run in runs:
        for name, version in run.versions.items():
            together.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(together[name])) for name in sorted(together)}


def _run_block(run: Run, tolerance: float, by_task: Mapping[str, float], with_samples: bool) -> dict[str, Any]:
    tasks = {
        name: _task_block(run.scores[name], by_task.get(name, tolerance), with_samples) for name in sorted(run.scores)
    }
    head = {"model": run.model, "checkpoint": run.checkpoint, "selector": run.selector}
    return {**head, "options": run.options, "tasks": tasks}


def _task_block(score: Score, tolerance: float, with_samples: bool) -> dict[str, Any]:
    from lmms_flexselect.scores.statistics import stderr

    block: dict[str, Any] = {"score": round(score.points, 4)}
    error = stderr(score)
    if math.isfinite(error):
        block["stderr"] = round(error, 4)
    block |= {"n": score.n, "tolerance": float(tolerance)}
    if (samples := score.samples) is not None:
        block["questions"] = samples.fingerprint
        if with_samples and set(samples.correct) <= {0.0, 1.0}:
            block["documents"] = _ranges(samples.documents)
            block["correct"] = textwrap.wrap("".join(str(int(c)) for c in samples.correct), _LINE)
    return block


def _ranges(numbers: list[int]) -> str:
    """``0-11,14`` for ascending numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _numbers(ranges: str) -> list[int]:
    pairs = (part.partition("-") for part in ranges.split(","))
    return [n for first, _, last in pairs for n in range(int(first), int(last or first) + 1)]


def read_expectation(file: Path) -> list[ExpectedRun]:
    """Read an expectation file.

    Raises
    ------
    FlexSelectError
        If it is not there, is not one, or says a run twice.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        runs = [_expected_run(block) for block in content["runs"]]
    except OSError as error:
        raise FlexSelectError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlexSelectError(
            f"{file}: not an expectation file of `lmms-flexselect scores record` ({reason})"
        ) from None
    if not any(run.tasks for run in runs):
        raise FlexSelectError(f"{file}: expects nothing")
    seen = set()
    for run in runs:
        identity = (run.name, str(sorted(run.options.items(), key=str)))
        if identity in seen:
            raise FlexSelectError(f"{file}: {run.name} is in it twice, with the same options")
        seen.add(identity)
    return runs


def _expected_run(block: dict[str, Any]) -> ExpectedRun:
    tasks = [_expected_task(str(name), values) for name, values in block["tasks"].items()]
    identity = (str(block[name]) for name in ("model", "checkpoint", "selector"))
    return ExpectedRun(*identity, dict(block["options"]), tasks)


def _expected_task(task: str, values: dict[str, Any]) -> ExpectedTask:
    score, tolerance, n = float(values["score"]), float(values["tolerance"]), int(values["n"])
    if not (0 <= score <= 100 and 0 <= tolerance < 100 and n > 0):
        raise ValueError(f"{task}: score {score}, tolerance {tolerance}, n {n}")
    samples = None
    if "correct" in values:
        digits = "".join(str(line) for line in values["correct"])
        samples = Samples(_numbers(str(values["documents"])), [float("01".index(digit)) for digit in digits])
        if not len(samples.documents) == len(samples.correct) == n:
            raise ValueError(f"{task}: {len(samples.correct)} digits for {len(samples.documents)} documents, n {n}")
    questions = values.get("questions")
    return ExpectedTask(task, score, tolerance, n, None if questions is None else str(questions), samples)
