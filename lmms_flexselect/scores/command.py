"""``lmms-flexselect scores``: a table of results, and results recorded and checked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.scores.check import check
from lmms_flexselect.scores.expectation import DEFAULT_TOLERANCE, record

FORMATS = ("text", "markdown", "junit")


def main(words: list[str]) -> int:
    """``lmms-flexselect scores [record|check] RESULTS…``; returns the exit status."""
    if words[:1] == ["record"]:
        return _record(words[1:])
    if words[:1] == ["check"]:
        return _check(words[1:])
    raise FlexSelectError("scores: say record or check")


def _record(words: list[str]) -> int:
    parser = _parser("scores record", "write an expectation file that later results are held to")
    parser.add_argument("--output", type=Path, required=True, help="the expectation file; replaced if it is there")
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="[TASK=]POINTS",
        help=f"how many points of 100 a later score may be lower, of all tasks or of one (default {DEFAULT_TOLERANCE})",
    )
    parser.add_argument("--no_samples", action="store_true", help="leave out which questions were answered right")
    given = parser.parse_args(words)
    general, by_task = _tolerances(given.tolerance)
    runs = record(given.results, given.output, general, by_task, not given.no_samples)
    print(f"{given.output}: {len(runs)} runs, {sum(len(run.scores) for run in runs)} scores")
    return 0


def _tolerances(given: list[str]) -> tuple[float, dict[str, float]]:
    general, by_task = DEFAULT_TOLERANCE, {}
    for each in given:
        task, _, points = each.rpartition("=")
        try:
            value = float(points)
        except ValueError:
            raise FlexSelectError(f"--tolerance {each}: give points, or TASK=points") from None
        if task:
            by_task[task] = value
        else:
            general = value
    return general, by_task


def _check(words: list[str]) -> int:
    parser = _parser("scores check", "hold results to an expectation file; exit status 1 unless all is as recorded")
    parser.add_argument("--expect", type=Path, required=True, help="written by `scores record`")
    given = parser.parse_args(words)
    report = check(given.results, given.expect)
    for case in report.cases:
        print(f"{case.outcome}: {case.run} {case.task}: {case.message}")
    for note in report.notes:
        print(note)
    return 0 if report.passed else 1


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"lmms-flexselect {name}", description=description)
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="lmms-eval's results files, or folders to search for them"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
