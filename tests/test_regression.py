"""What ``make scores`` holds this package to, and that a broken selection does not get past it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lmms_flexselect.needle import needle_families
from lmms_flexselect.tools.installed import installed_path
from lmms_flexselect.tools.scores import check
from lmms_flexselect.tools.scores.expectation import read_expectation
from tests.support.broken import RUNS, TASK

EXPECTED = Path(__file__).parent / "expected" / "needle.yaml"
SELECTORS = ("none", "random", "uniform", "flexselect", "lite")


def test_every_family_and_selector_is_held_to_something():
    config = yaml.safe_load((installed_path("run_configs") / "regression.yaml").read_text())
    asked = {(run["model"], run["model_args"].rpartition("selector=")[2]): run for run in config}
    models = [spec.models[0].name for spec in needle_families().values()]
    assert set(asked) == {(model, selector) for model in models for selector in SELECTORS}
    expected = {(run.model, run.selector): run for run in read_expectation(EXPECTED)}
    assert set(expected) == set(asked)
    for name, run in asked.items():
        tasks = {task.task: task for task in expected[name].tasks}
        assert set(tasks) == set(run["tasks"].split(","))
        for task in tasks.values():
            assert task.n == run["limit"] == len(task.samples.correct)  # type: ignore[union-attr]
            assert task.tolerance <= 3
            assert task.prompts["visual_tokens_kept"] > 0


def test_what_is_expected_is_worth_expecting():
    """FlexSelect and Lite far above the controls on long videos: a record of a broken run would hold nothing."""
    for run in read_expectation(EXPECTED):
        (long,) = [task for task in run.tasks if task.task == TASK]
        if run.selector in ("flexselect", "lite"):
            assert long.score >= 90
        elif run.selector in ("random", "uniform"):
            assert long.score <= 60


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.broken", str(folder)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.cli
@pytest.mark.parametrize(
    ("name", "outcome", "says"),
    [
        ("control", "same", ""),
        ("random", "regression", "points lower, more than 3"),
        ("layer", "regression", "points lower, more than 3"),
        ("positions", "error", "the model reads other prompts: position_span was "),
    ],
)
def test_a_broken_selection_turns_it_red(broken, tmp_path, name, outcome, says):
    content = yaml.safe_load(EXPECTED.read_text())
    runs = [r for r in content["runs"] if (r["model"], r["selector"]) == (f"{RUNS[name][1]}_flexselect", "flexselect")]
    assert len(runs) == 1
    runs[0]["tasks"] = {TASK: runs[0]["tasks"][TASK]}
    (tmp_path / "expected.yaml").write_text(yaml.safe_dump({"runs": runs}))
    report = check([broken / name], tmp_path / "expected.yaml")
    (case,) = report.cases
    assert (case.outcome, report.passed) == (outcome, outcome == "same"), case.reason
    assert says in case.reason
