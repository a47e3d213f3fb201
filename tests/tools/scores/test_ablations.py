"""Curves out of results files, beside the paper's; what does not vary is refused."""

from __future__ import annotations

import math

import pytest

from lmms_flexselect.cli import main
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores.ablations import curves
from lmms_flexselect.tools.scores.paper import ablation
from tests.support.results_files import answers, right, write_run

PAPER_FRAMES = {64: 65.2, 128: 67.8, 256: 68.1, 512: 68.9, 1024: 68.1}


@pytest.fixture
def results(tmp_path):
    """Two tasks at three budgets, and a baseline."""
    for budget, wrong in ((1680, {0, 1, 2}), (6720, {0}), (3360, {0, 1})):
        write_run(tmp_path / str(budget), {"videomme": answers(wrong), "lvbench": right()}, token_budget=budget)
    write_run(tmp_path / "none", {"videomme": answers({4, 5, 6, 7})}, selector="none")
    return tmp_path


def test_a_curve_a_task_and_a_level_for_the_baseline(results):
    lvbench, *videomme = curves([results], "token_budget")
    assert [point.points for point in lvbench.points] == [100, 100, 100]
    level, curve = sorted(videomme, key=lambda each: len(each.points))
    assert [(p.value, round(p.points, 2), p.n) for p in curve.points] == [
        (1680, 75.0, 12),
        (3360, 83.33, 12),
        (6720, 91.67, 12),
    ]
    assert all(p.stderr > 0 for p in curve.points)
    assert (level.level, level.name) == (True, "llava_vid_flexselect LLaVA-Video-7B-Qwen2 none")
    assert (curve.level, curve.name) == (False, "llava_vid_flexselect LLaVA-Video-7B-Qwen2 flexselect")


def test_frames_by_whatever_name(tmp_path):
    for frames in (64, 512):
        write_run(tmp_path / str(frames), {"videomme": right()}, upstream={"max_frames_num": str(frames)})
    for over in ("frames", "max_num_frames", "max_frames_num"):
        (curve,) = curves([tmp_path], over)
        assert [point.value for point in curve.points] == [64, 512]


@pytest.mark.parametrize(
    ("over", "names", "values"),
    [
        ("selector_size", ("lite_7b_size_1_8b", "lite_0.5B"), [0.5, 1.8]),
        ("share", ("share_05", "share_0.10"), [5, 10]),
    ],
)
def test_what_a_selectors_name_tells(tmp_path, over, names, values):
    for name in names:
        write_run(tmp_path / name, {"videomme": right()}, selector="lite", selector_path=f"some/{name}")
    (curve,) = curves([tmp_path], over)
    assert [point.value for point in curve.points] == values
    (curve,) = curves([tmp_path], over, {names[0]: 7.0, names[1]: 70.0})
    assert [point.value for point in curve.points] == [7, 70]


def test_a_selectors_name_that_does_not_tell(tmp_path):
    write_run(tmp_path, {"videomme": right()}, selector="lite", selector_path="some/mine")
    with pytest.raises(FlexSelectError, match="the name mine does not tell it; add --at mine=NUMBER"):
        curves([tmp_path], "selector_size")


def test_words_are_in_their_order(tmp_path):
    for reduction in ("mean", "max"):
        write_run(tmp_path / reduction, {"videomme": right()}, reduction=reduction)
    (curve,) = curves([tmp_path], "reduction")
    assert [point.value for point in curve.points] == ["max", "mean"]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (
            "reference_layer",
            "--over reference_layer: is 19 in every run; these 4 runs differ in token_budget, selector",
        ),
        ("token_bugdet", "--over token_bugdet: no run has it; these 4 runs differ in token_budget, selector"),
        ("selector_size", "--over selector_size: no run has it"),
    ],
)
def test_what_does_not_vary(results, capsys, over, says):
    assert main(["plot", str(results), "--over", over]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_what_varies_with_something_else(tmp_path):
    for budget, layer in ((1680, 3), (3360, 4)):
        write_run(tmp_path / str(budget), {"videomme": right()}, token_budget=budget, reference_layer=layer)
    with pytest.raises(FlexSelectError, match=r"no two runs differ in it alone; .* in reference_layer, token_budget"):
        curves([tmp_path], "token_budget")


@pytest.mark.parametrize(
    ("over", "task", "expected"),
    [
        ("frames", "videomme", ("paper, LLaVA-Video-7B, 6,720 tokens", PAPER_FRAMES)),
        ("selector_size", "lvbench", ("paper, InternVL2.5-8B", {0.5: 49.9, 1.8: 49.7, 3.0: 50.1})),
        ("frames", "lvbench", None),
        ("reference_layer", "videomme", None),
        ("selector_size", "flexselect_needle_64", None),
    ],
)
def test_the_papers_curves(over, task, expected):
    assert ablation(over, task) == expected


def test_the_command(results, tmp_path, capsys):
    picture = tmp_path / "new" / "budget.png"
    assert main(["plot", str(results), "--over", "token_budget", "--output", str(picture)]) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = {(row[0], *(cell.strip() for cell in row[1:] if cell.strip())) for row in rows}
    assert ("videomme", "paper, LLaVA-Video-7B, 512 frames", "3360", "68.40") in told
    (tmp_path / "file").touch()
    assert main(["plot", str(results), "--over", "token_budget", "--output", str(tmp_path / "file" / "a.png")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main(["plot", str(results), "--over", "selector_size", "--at", "mine=x"]) == 1
    assert "--at mine=x: give SELECTOR=NUMBER" in capsys.readouterr().err


def test_a_score_without_a_standard_error_is_drawn(tmp_path):
    for budget in (1, 2):
        write_run(tmp_path / str(budget), {"mlvu_dev": right(1)}, log_samples=False, token_budget=budget)
    (curve,) = curves([tmp_path], "token_budget")
    assert all(math.isnan(point.stderr) for point in curve.points)
    assert main(["plot", str(tmp_path), "--over", "token_budget", "--output", str(tmp_path / "a.png")]) == 0
