"""Expectation files, read: what later runs are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.method.registry import canonical_name
from lmms_flexselect.tools.scores.samples import Samples


@dataclass
class ExpectedTask:
    """What one task is held to.

    Attributes
    ----------
    task
        lmms-eval's name.
    score, stderr, tolerance
        In points; a later score may be lower by `tolerance`; the standard error is NaN where it was not known.
    n
        Questions.
    questions
        Fingerprint of `Samples`; None where no samples were logged.
    samples
        Which questions were answered right; None where that was not recorded.
    prompts
        What was read of a question, on average (see `Score`).
    """

    task: str
    score: float
    stderr: float
    tolerance: float
    n: int
    questions: str | None
    samples: Samples | None
    prompts: dict[str, float] = field(default_factory=dict)


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
    model, checkpoint, selector = (str(block[name]) for name in ("model", "checkpoint", "selector"))
    selector = canonical_name(selector)
    return ExpectedRun(model, checkpoint, selector, dict(block["options"]), tasks)


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
    error = float(values.get("stderr", math.nan))
    fingerprint = None if questions is None else str(questions)
    prompts = {str(name): float(value) for name, value in (values.get("prompts") or {}).items()}
    return ExpectedTask(task, score, error, tolerance, n, fingerprint, samples, prompts)
