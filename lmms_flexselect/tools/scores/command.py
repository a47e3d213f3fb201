"""``lmms-flexselect scores``: a table of results; ``scores record`` and ``scores check``: results held to a record."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores.checking import check
from lmms_flexselect.tools.scores.recording import DEFAULT_TOLERANCE, record

_FORMATS = ("text", "markdown", "junit")


def main(words: list[str]) -> int:
    """``lmms-flexselect scores [record|check] RESULTS…``; returns the exit status."""
    commands = {"record": _record, "check": _check}
    return commands[words[0]](words[1:]) if words[:1] and words[0] in commands else _table(words)


def _table(words: list[str]) -> int:
    parser = _parser(
        "scores",
        "Print results beside the paper's numbers and a baseline's. `scores record --help` and `scores check --help` "
        "say how results are recorded, and later ones held to that.",
    )
    parser.add_argument("--baseline", type=Path, help="results, a folder of them, or a file of `scores record`")
    _add_output(parser)
    given = parser.parse_args(words)
    from lmms_flexselect.tools.scores.report import show_rows
    from lmms_flexselect.tools.scores.rows import compare

    _put(show_rows(compare(given.results, given.baseline), given.format), given.output)
    return 0


def _record(words: list[str]) -> int:
    parser = _parser("scores record", "Write an expectation file that later results are held to.")
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
    parser = _parser("scores check", "Hold results to an expectation file; exit status 1 unless all is as recorded.")
    parser.add_argument("--expect", type=Path, required=True, help="written by `scores record`")
    _add_output(parser)
    given = parser.parse_args(words)
    report = check(given.results, given.expect)
    from lmms_flexselect.tools.scores.report import show_report

    _put(show_report(report, given.format), given.output)
    if given.output is not None:
        print(show_report(report, "text"), end="")
    return 0 if report.passed else 1


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"lmms-flexselect {name}", description=description)
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="lmms-eval's results files, or folders to search for them"
    )
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=_FORMATS, default="text", help="default: text")
    parser.add_argument("--output", type=Path, help="file to write instead of printing; its folder is made")


def _put(text: str, output: Path | None) -> None:
    if output is None:
        print(text, end="")
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, "utf-8")
    except OSError as error:
        raise FlexSelectError(f"--output {output}: cannot be written ({error.strerror})") from None
