"""Tables and checks as text, Markdown and JUnit XML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree

from tabulate import tabulate

from lmms_flexselect.tools.scores.checking import Case, Report
from lmms_flexselect.tools.scores.rows import Row
from lmms_flexselect.tools.scores.runs import distinct_names

FORMATS = ("text", "markdown", "junit")

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def show_rows(rows: Sequence[Row], form: str) -> str:
    """The table of `rows.compare`, in one of `FORMATS`."""
    names = distinct_names([row.run for row in rows])
    if form == "junit":
        cases = [
            (name, row.score.task, _row_outcome(row), _row_text(row)) for name, row in zip(names, rows, strict=True)
        ]
        return _junit("scores", cases)
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    table: list[list[str]] = []
    for name, row in zip(names, rows, strict=True):
        numbers = " ".join(f"[{i}]" for i, note in enumerate(notes, 1) if note in row.notes)
        options = name.removeprefix(row.run.name).strip()
        table.append([row.run.model, row.run.checkpoint, row.run.selector, options, *_row_numbers(row), numbers])
    heads = ["model", "checkpoint", "selector", "options", "task", "score", "± se", "n"]
    heads += ["paper", "from paper", "vs paper", "baseline", "from baseline", "its ± se", "p", "vs baseline", "notes"]
    return _table(heads, table, form) + _listed([f"[{i}] {note}" for i, note in enumerate(notes, 1)], form)


def show_report(report: Report, form: str) -> str:
    """A check, in one of `FORMATS`."""
    if form == "junit":
        cases = [(case.run, case.task, _case_outcome(case), _case_text(case)) for case in report.cases]
        return _junit("scores check", cases)
    heads = ["outcome", "run", "task", "recorded", "now", "difference", "p", "tolerance"]
    table = [[case.outcome, case.run, case.task, *_case_numbers(case)] for case in report.cases]
    failed = sum(not case.passed for case in report.cases)
    summary = f"{failed} of {len(report.cases)} scores failed" if failed else f"all {len(report.cases)} scores hold"
    if form == "markdown":
        summary = f"**{summary}**"
    return f"{summary}\n\n" + _table(heads, table, form) + _listed([*_reasons(report), *report.notes], form)


def _reasons(report: Report) -> list[str]:
    """A line for each reason, with the first case that has it."""
    sharing: dict[tuple[str, str], list[Case]] = {}
    for case in report.cases:
        if case.reason:
            sharing.setdefault((case.outcome, case.reason), []).append(case)
    lines = []
    for (outcome, reason), cases in sharing.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        lines.append(f"{outcome}: {cases[0].run} {cases[0].task}{more}: {reason}")
    return lines


def _table(heads: list[str], table: list[list[str]], form: str) -> str:
    """Columns in which nothing stands are left out."""
    full = [i for i in range(len(heads)) if any(line[i] for line in table)]
    cells = [[_cell(line[i], form) for i in full] for line in table]
    aligned = ["left" if re.search("[a-z]{3}", "".join(line[i] for line in table)) else "right" for i in full]
    style = "github" if form == "markdown" else "simple"
    return (
        tabulate(cells, [heads[i] for i in full], tablefmt=style, disable_numparse=True, colalign=aligned) + "\n"
        if cells
        else ""
    )


def _cell(text: str, form: str) -> str:
    return text.replace("|", "\\|") if form == "markdown" else text


def _listed(lines: Sequence[str], form: str) -> str:
    if not lines:
        return ""
    return "\n" + "".join(f"- {line}\n" if form == "markdown" else f"{line}\n" for line in lines)


def _number(value: float | None, pattern: str = ".2f") -> str:
    return "" if value is None or math.isnan(value) else format(value, pattern)


def _row_numbers(row: Row) -> list[str]:
    score, difference = row.score, row.difference
    from_paper = None if row.paper is None else score.points - row.paper
    return [
        score.task,
        _number(score.points),
        _number(row.stderr),
        str(score.n or ""),
        _number(row.paper, ".1f"),
        _number(from_paper, "+.2f"),
        row.paper_verdict,
        _number(row.baseline),
        _number(difference.points if difference else None, "+.2f"),
        _number(difference.stderr if difference else None),
        _number(difference.p_value if difference else None, ".3g"),
        row.verdict,
    ]


def _row_outcome(row: Row) -> str:
    return "regression" if row.verdict == "worse" else ""


def _row_text(row: Row) -> str:
    heads = ["task", "score", "stderr", "n", "paper", "difference from the paper's", "against the paper"]
    heads += ["baseline", "difference from the baseline", "its stderr", "p", "against the baseline"]
    said = [f"{head}: {value}" for head, value in zip(heads, _row_numbers(row), strict=True) if value]
    return "\n".join([*said, *row.notes])


def _case_numbers(case: Case) -> list[str]:
    difference = None if case.score is None else case.score - case.recorded
    return [
        _number(case.recorded),
        _number(case.score),
        _number(difference, "+.2f"),
        _number(case.p_value, ".3g"),
        f"{case.tolerance:g}",
    ]


def _case_outcome(case: Case) -> str:
    return "" if case.passed else case.outcome


def _case_text(case: Case) -> str:
    heads = ("recorded", "now", "difference", "p", "tolerance")
    said = [f"{head}: {value}" for head, value in zip(heads, _case_numbers(case), strict=True) if value]
    return "\n".join([f"{case.outcome}: {case.reason}" if case.reason else case.outcome, *said])


def _junit(title: str, cases: list[tuple[str, str, str, str]]) -> str:
    """JUnit XML of (run, task, outcome or "" if it passed, text): a suite for each run, a case for each task.

    Elements and attributes are those that Jenkins' schema (its xunit plugin's junit-10.xsd) allows; GitLab and GitHub's
    actions read the same. Outcome ``error`` becomes an ``error`` element, any other a ``failure``; what passed has its
    text as output.
    """

    def counted(some: list[tuple[str, str, str, str]]) -> dict[str, str]:
        errors = sum(outcome == "error" for _, _, outcome, _ in some)
        failures = sum(outcome not in ("", "error") for _, _, outcome, _ in some)
        counts = {"tests": len(some), "failures": failures, "errors": errors, "time": 0}
        return {name: str(count) for name, count in counts.items()}

    root = ElementTree.Element("testsuites", {"name": title, **counted(cases)})
    for run, group in groupby(cases, key=lambda case: case[0]):
        own = list(group)
        suite = ElementTree.SubElement(root, "testsuite", {"name": _xml(run), **counted(own)})
        for _, task, outcome, text in own:
            names = {"classname": _xml(run).replace(" ", "."), "name": _xml(task), "time": "0"}
            case = ElementTree.SubElement(suite, "testcase", names)
            if not outcome:
                ElementTree.SubElement(case, "system-out").text = _xml(text)
                continue
            tag = "error" if outcome == "error" else "failure"
            first = _xml(text).partition("\n")[0]
            ElementTree.SubElement(case, tag, {"type": outcome, "message": first}).text = _xml(text)
    ElementTree.indent(root)
    # Not encoding="unicode", whose declaration names the locale's encoding.
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
