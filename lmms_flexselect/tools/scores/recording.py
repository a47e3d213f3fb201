"""``scores record``: an expectation file of results. Readable, and the same text for the same results."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.saving import replacing
from lmms_flexselect.tools.scores.results import read_runs
from lmms_flexselect.tools.scores.runs import Run, Score, refuse_problems

DEFAULT_TOLERANCE = 2.0
_LINE = 100

_HEAD = """\
# Written by `lmms-flexselect scores record`; `lmms-flexselect scores check RESULTS --expect THIS_FILE` holds results to
# it. Scores, standard errors and tolerances are points of 100. A tolerance may be edited; the word `any` instead of an
# option's value allows every value. `prompts` says what was read of a question, on average. `correct` has a digit for
# each question, in the order of `documents`.
"""


def record(
    results: Iterable[Path | str],
    output: Path | str,
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
    for unreadable in (score.unreadable for run in runs for score in run.scores.values()):
        if unreadable is not None:
            raise FlexSelectError(unreadable)
    by_task = dict(by_task or {})
    for name, points in {"tolerance": tolerance, **by_task}.items():
        if not 0 <= points < 100:
            raise FlexSelectError(f"{name}={points}: a tolerance is of 0 to 100 points")
    if unknown := sorted(set(by_task) - {task for run in runs for task in run.scores}):
        raise FlexSelectError(f"a tolerance for {unknown[0]}, which these results do not have")
    content = {"versions": _versions(runs)} if _versions(runs) else {}
    blocks = [_run_block(run, tolerance, by_task, with_samples) for run in runs]
    text = _HEAD + yaml.safe_dump({**content, "runs": blocks}, sort_keys=False, width=110, allow_unicode=True)
    _write(Path(output), text)
    return runs


def _write(output: Path, text: str) -> None:
    """All of it or nothing: what was there stays until the new file is whole."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as unfinished:
            unfinished.write_text(text, "utf-8")
    except OSError as error:
        raise FlexSelectError(f"{output}: cannot be written ({error.strerror})") from None


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
    from lmms_flexselect.tools.scores.statistics import stderr

    block: dict[str, Any] = {"score": round(score.points, 4)}
    error = stderr(score)
    if math.isfinite(error):
        block["stderr"] = round(error, 4)
    block |= {"n": score.n, "tolerance": float(tolerance)}
    if score.prompts:
        block["prompts"] = score.prompts
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
