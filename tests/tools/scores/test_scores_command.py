"""``lmms-flexselect scores``: its words, its exit status, and what it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lmms_flexselect.cli import main
from lmms_flexselect.tools.scores.checking import Case, Report
from lmms_flexselect.tools.scores.report import show_report
from tests.support.results_files import answers, right, write_run


@pytest.fixture
def recorded(tmp_path, capsys):
    """Two runs, recorded by the command."""
    write_run(tmp_path / "runs", {"lvbench": answers({1, 5}), "videomme": right()})
    write_run(tmp_path / "runs", {"lvbench": answers({1, 2, 3})}, "20260102_000000", selector="none")
    words = ["scores", "record", str(tmp_path / "runs"), "--output", str(tmp_path / "expect.yaml")]
    assert main([*words, "--tolerance", "3", "--tolerance", "videomme=0.5"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'expect.yaml'}: 2 runs, 3 scores\n"
    return tmp_path


def test_recorded_tolerances(recorded):
    text = (recorded / "expect.yaml").read_text()
    assert (text.count("tolerance: 3.0"), text.count("tolerance: 0.5")) == (2, 1)


def test_check_passes_and_says_so(recorded, capsys):
    assert main(["scores", "check", str(recorded / "runs"), "--expect", str(recorded / "expect.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("all 3 scores hold\n")
    assert out.count("same") == 3


def test_check_fails_with_its_reasons(recorded, capsys):
    write_run(recorded / "now", {"lvbench": answers({1, 5, 6}), "videomme": right()})
    assert main(["scores", "check", str(recorded / "now"), "--expect", str(recorded / "expect.yaml")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("2 of 3 scores failed\n")
    assert "flexselect lvbench: 8.33 points lower, more than 3" in out
    assert "none lvbench: no such run" in out


def test_check_of_nothing_fails(recorded, capsys):
    (recorded / "now").mkdir()
    assert main(["scores", "check", str(recorded / "now"), "--expect", str(recorded / "expect.yaml")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("3 of 3 scores failed\n")
    assert out.count("lmms-eval exits with 0 when it fails too") == 1  # one reason, said once
    assert "and 2 more" in out


def test_markdown(recorded, capsys):
    write_run(recorded / "now", {"lvbench": answers({1, 5, 6}), "videomme": right()})
    words = [
        "scores",
        "check",
        str(recorded / "now"),
        "--expect",
        str(recorded / "expect.yaml"),
        "--format",
        "markdown",
    ]
    assert main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**2 of 3 scores failed**"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1
    assert sum(line.startswith("- ") for line in lines) == 2


# By Jenkins' schema (xunit plugin, junit-10.xsd), which is stricter than other readers.
ALLOWED = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "time", "tests", "failures", "errors", "skipped", "timestamp", "hostname", "id", "package"},
    "testcase": {"name", "time", "classname", "group"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "system-out": set(),
}


def junit(text):
    """A JUnit file as its readers take it: counts that are right, and every case in its suite."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    suites = root.findall("testsuite")
    for node in (root, *suites):
        cases = list(node.iter("testcase"))
        assert int(node.get("tests", "")) == len(cases) > 0
        assert int(node.get("failures", "")) == sum(case.find("failure") is not None for case in cases)
        assert int(node.get("errors", "")) == sum(case.find("error") is not None for case in cases)
    for node in root.iter():
        assert set(node.attrib) <= ALLOWED[node.tag]
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert all(all(pair) for pair in names)
    assert len(names) == len(set(names))
    return suites


def test_junit(recorded, capsys):
    write_run(recorded / "now", {"lvbench": answers({1, 5, 6}), "videomme": right()})
    output = recorded / "new" / "junit.xml"
    words = ["scores", "check", str(recorded / "now"), "--expect", str(recorded / "expect.yaml")]
    assert main([*words, "--format", "junit", "--output", str(output)]) == 1
    assert "2 of 3 scores failed" in capsys.readouterr().out  # the text too, for the log
    reference, none = junit(output.read_text())
    assert none.get("name") == "llava_vid_flexselect LLaVA-Video-7B-Qwen2 none"
    assert "no such run" in none.find("testcase/error").get("message")
    lvbench, videomme = reference.findall("testcase")
    assert lvbench.find("failure").get("type") == "regression"
    assert lvbench.find("failure").get("message") == "regression: 8.33 points lower, more than 3"
    assert videomme.find("system-out").text.splitlines() == [
        "same",
        "recorded: 100.00",
        "now: 100.00",
        "difference: +0.00",
        "p: 1",
        "tolerance: 0.5",
    ]


def test_junit_holds_whatever_a_message_says():
    reason = 'a <tag> & "quotes" \x1b[31m\x00 \ud800 é 視 \U0001f600 ]]>'
    case = Case('run "<1>"', "task & co", 1.0, 2.0, "error", reason)
    (suite,) = junit(show_report(Report([case]), "junit"))
    assert suite.get("name") == 'run "<1>"'
    message = suite.find("testcase/error").get("message")
    assert message == 'error: a <tag> & "quotes" ?[31m? ? é 視 \U0001f600 ]]>'


def test_the_table_and_its_forms(recorded, capsys):
    runs, expect = str(recorded / "runs"), str(recorded / "expect.yaml")
    assert main(["scores", runs, "--baseline", expect]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["model", "checkpoint", "selector"]
    assert "vs baseline" in out
    assert main(["scores", runs, "--baseline", expect, "--format", "junit"]) == 0
    suites = junit(capsys.readouterr().out)
    assert [len(suite) for suite in suites] == [3, 1]  # VideoMME, its long videos, LVBench; LVBench
    assert main(["scores", runs, "--format", "markdown", "--output", str(recorded / "table.md")]) == 0
    assert capsys.readouterr().out == ""
    assert (recorded / "table.md").read_text().startswith("| model ")


def test_a_worse_row_is_a_failure_in_junit(tmp_path, capsys):
    write_run(tmp_path / "a", {"lvbench": answers(set(range(40)), 60)})
    write_run(tmp_path / "b", {"lvbench": right(60)}, selector="none")
    words = ["scores", str(tmp_path / "a"), "--baseline", str(tmp_path / "b"), "--format", "junit"]
    assert main(words) == 0  # a comparison, not a check
    (suite,) = junit(capsys.readouterr().out)
    assert "against the baseline: worse" in suite.find("testcase/failure").text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing"], "missing: not there"),
        (["check", "missing", "--expect", "no.yaml"], "no.yaml: cannot be read"),
        (["record", "missing", "--output", "x.yaml"], "missing: not there"),
        (["record", "missing", "--output", "x.yaml", "--tolerance", "lvbench=much"], "give points, or TASK=points"),
    ],
)
def test_one_line_errors(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(["scores", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("lmms-flexselect: ")
    assert err.count("\n") == 1
    assert says in err


def test_an_output_that_cannot_be_written(recorded, capsys):
    (recorded / "file").write_text("")
    for words in (["scores"], ["scores", "record"]):
        assert main([*words, str(recorded / "runs"), "--output", str(recorded / "file" / "out")]) == 1
        assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["scores"], ["scores", "check", "x"], ["scores", "x", "--format", "html"]])
def test_wrong_words(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: lmms-flexselect scores" in capsys.readouterr().err


def test_a_check_of_unchanged_answers_needs_neither_torch_nor_lmms_eval(recorded):
    """It runs at the end of every CI job: in a moment."""
    words = ["scores", "check", str(recorded / "runs"), "--expect", str(recorded / "expect.yaml")]
    command = [sys.executable, "-X", "importtime", str(Path(sys.executable).with_name("lmms-flexselect")), *words]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in run.stderr.splitlines()}
    assert "lmms_flexselect.tools.scores.checking" in imported
    assert not {"torch", "transformers", "lmms_eval"} & imported
