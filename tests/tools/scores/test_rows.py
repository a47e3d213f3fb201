"""The table: which of the paper's numbers is beside which score, and what a baseline says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.reproduction.rows import facts
from lmms_flexselect.tools.scores import record
from lmms_flexselect.tools.scores import rows as table
from lmms_flexselect.tools.scores.paper import departures, model_of, published
from lmms_flexselect.tools.scores.report import show_rows
from lmms_flexselect.tools.scores.runs import Run
from tests.support.results_files import SCORED, answers, right, write_run


def compare(results, baseline=None) -> Any:
    """The rows, of whatever they have."""
    return table.compare(results, baseline)


def run(checkpoint, selector, **options):
    return Run(Path(), "m", checkpoint, selector, options, {})


@pytest.mark.parametrize(
    ("checkpoint", "selector", "task", "number"),
    [
        ("LLaVA-Video-7B-Qwen2", "flexselect", "videomme", 68.9),
        ("LLaVA-Video-7B-Qwen2", "flexselect", "videomme, long", 59.8),
        ("LLaVA-Video-7B-Qwen2", "none", "flexselect_paper_mlvu", 68.6),
        ("llava-video-72b-qwen2", "flexselect", "lvbench", 55.5),
        ("Qwen2.5-VL-7B-Instruct", "lite", "flexselect_paper_videomme, long", 58.6),
        ("Qwen2.5-VL-72B-Instruct", "none", "longvideobench_val_v", 66.2),
        ("InternVL2_5-8B", "lite", "flexselect_paper_longvideobench_sub", 61.2),
        ("InternVL2_5-8B-MPO", "flexselect", "videomme", None),
        ("LLaVA-Video-7B-Qwen2-Video-Only", "flexselect", "videomme", None),
        ("LLaVA-Video-72B-Qwen2", "lite", "videomme", None),
        ("LLaVA-Video-7B-Qwen2", "uniform", "videomme", None),
        ("LLaVA-Video-7B-Qwen2", "", "videomme", None),
        ("LLaVA-Video-7B-Qwen2", "flexselect", "lvbench, long", None),
        ("LLaVA-Video-7B-Qwen2", "flexselect", "flexselect_needle_16", None),
    ],
)
def test_published_numbers(checkpoint, selector, task, number):
    assert published(run(checkpoint, selector), task) == number


def test_every_row_of_the_papers_table_has_a_model():
    table, models = facts()["published"]["table1"], facts()["models"]
    assert {row["model"] for row in table} == set(models)
    assert len(table) == 13
    assert all(model_of(run(model["pretrained"].split("/")[1], "none")) == name for name, model in models.items())


PAPERS = {
    "reference_layer": 19,
    "token_budget": 6720,
    "max_frames_per_set": 64,
    "reduction": "max",
    "budget_remainder": "drop",
    "max_frames_num": 512,
    "conv_template": "qwen_1_5",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
}


def test_departures_from_the_papers_options():
    task = "flexselect_paper_videomme"

    def said(selector, task=task, **changed):
        return departures(run("LLaVA-Video-7B-Qwen2", selector, **{**PAPERS, **changed}), task)

    assert said("flexselect") == []
    assert said("flexselect", max_frames_num=64) == ["max_frames_num=64, the paper's 512"]
    assert said("flexselect", reference_layer=18, token_budget=3360) == [
        "reference_layer=18, the paper's 19",
        "token_budget=3360, the paper's 6720",
    ]
    assert said("lite", reference_layer=None) == []
    assert said("flexselect", task="videomme") == ["lmms-eval's prompts and parsers, not the paper's"]
    assert said("none", max_frames_num=64) == [
        "max_frames_num=64: how many frames the paper's baseline read is not known"
    ]
    assert said("flexselect", attn_implementation="eager", dtype="float32", strict=False) == []
    assert said("flexselect", force_sample=True) == ["force_sample=True, the paper's False"]
    assert said("none", mm_spatial_pool_mode="average")[0] == "mm_spatial_pool_mode=average, the paper's bilinear"


def test_subtitles_are_internvls():
    said = {
        (name, task): any("subtitles" in text for text in departures(run(checkpoint, "flexselect"), task))
        for name, checkpoint in (("InternVL2.5-8B", "InternVL2_5-8B"), ("LLaVA-Video-7B", "LLaVA-Video-7B-Qwen2"))
        for task in ("flexselect_paper_longvideobench", "flexselect_paper_longvideobench_sub", "flexselect_paper_mlvu")
    }
    assert [key for key, value in said.items() if value] == [
        ("InternVL2.5-8B", "flexselect_paper_longvideobench"),
        ("LLaVA-Video-7B", "flexselect_paper_longvideobench_sub"),
    ]


def test_scores_beside_the_papers(tmp_path):
    write_run(tmp_path, {task: answers({1, 5}) for task in SCORED})
    rows = {row.score.task: row for row in compare([tmp_path])}
    assert {task: row.paper for task, row in rows.items()} == {
        "videomme": 68.9,
        "videomme, long": 59.8,
        "mlvu_dev": 73.2,
        "longvideobench_val_v": 61.9,
        "lvbench": 52.9,
    }
    assert rows["videomme, long"].score.points == 75.0
    assert rows["videomme, long"].score.n == 4
    assert {row.paper_verdict for row in rows.values()} == {"cannot tell"}  # twelve questions
    independent = [task for task, row in rows.items() if any("independent" in note for note in row.notes)]
    assert independent == ["mlvu_dev", "lvbench"]
    assert all(row.baseline is None and row.difference is None for row in rows.values())


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.529, "agrees"), (0.60, "above"), (0.45, "below")], ids=["agrees", "above", "below"]
)
def test_verdicts_against_the_paper(tmp_path, share, verdict):
    n = 2000
    wrong = {i for i in range(n) if (i * 7919) % n >= share * n}
    write_run(tmp_path, {"lvbench": answers(wrong, n)})
    (row,) = compare([tmp_path])
    assert row.score.points == pytest.approx(100 * share, abs=0.1)
    assert (row.paper, row.paper_verdict) == (52.9, verdict)


def test_a_limited_run_tells_nothing_about_the_paper(tmp_path):
    write_run(tmp_path, {"lvbench": answers(set(range(0, 2000, 2)), 2000)}, of=5000)
    (row,) = compare([tmp_path])
    assert row.paper_verdict == "cannot tell"
    assert "2000 questions, not all 5000" in row.notes


def test_the_long_videos_metric_of_the_papers_task_without_samples(tmp_path):
    file = write_run(tmp_path, {"videomme": right()}, log_samples=False)
    content = json.loads(file.read_text().replace('"videomme"', '"flexselect_paper_videomme"'))
    content["results"]["flexselect_paper_videomme"]["videomme_long_perception_score,none"] = 59.5
    file.write_text(json.dumps(content))
    whole, long = compare([tmp_path])
    assert (long.score.task, long.score.points, long.paper) == ("flexselect_paper_videomme, long", 59.5, 59.8)
    assert math.isnan(long.stderr)
    assert long.paper_verdict == "cannot tell"
    assert whole.score.points == 100


def test_against_the_same_model_with_nothing_selected(tmp_path):
    n = 60
    write_run(tmp_path / "ours", {"lvbench": answers(set(range(0, 10)), n)})
    write_run(tmp_path / "none", {"lvbench": answers(set(range(0, 30)), n), "videomme": right()}, selector="none")
    (row,) = compare([tmp_path / "ours"], tmp_path / "none")
    assert (row.baseline, round(row.difference.points, 2), row.verdict) == (50.0, 33.33, "better")
    assert row.difference.p_value < 1e-5
    assert "other options than the baseline's, its in brackets: selector=flexselect (none)" in row.notes
    back = compare([tmp_path / "none"], tmp_path / "ours")
    verdicts = {row.score.task: row.verdict for row in back}
    assert verdicts == {"lvbench": "worse", "videomme": "not in the baseline", "videomme, long": "not in the baseline"}


def test_a_difference_is_of_the_questions_of_both(tmp_path):
    write_run(tmp_path / "all", {"lvbench": answers(set(range(30, 60)), 60)})
    write_run(tmp_path / "few", {"lvbench": answers(set(), 30)}, of=60)
    (row,) = compare([tmp_path / "few"], tmp_path / "all")
    assert (row.score.points, row.baseline, row.difference.points, row.verdict) == (100, 50, 0, "same")
    assert "difference over the 30 questions of both" in row.notes


def test_without_samples_of_both_no_paired_test(tmp_path):
    write_run(tmp_path / "a", {"lvbench": answers(set(range(30)), 60)}, log_samples=False)
    write_run(tmp_path / "b", {"lvbench": answers(set(range(28)), 60)}, selector="none")
    (row,) = compare([tmp_path / "a"], tmp_path / "b")
    assert row.difference.p_value is None
    assert row.difference.stderr == pytest.approx(100 * math.sqrt((0.5**2 + 7 / 15 * 8 / 15) / 59), rel=1e-3)
    assert row.verdict == "cannot tell"
    assert any("no paired test" in note for note in row.notes)


def test_an_expectation_file_is_a_baseline(tmp_path):
    write_run(tmp_path / "a", {task: answers({1, 5}) for task in SCORED})
    record([tmp_path / "a"], tmp_path / "expect.yaml")
    write_run(tmp_path / "b", {task: answers({1, 5, 7}) for task in SCORED})
    rows = {row.score.task: row for row in compare([tmp_path / "b"], tmp_path / "expect.yaml")}
    assert rows["lvbench"].difference.points == pytest.approx(-100 / 12)
    assert rows["mlvu_dev"].difference.points == pytest.approx(-100 / 14)  # one of two of its kind, of seven kinds
    assert rows["lvbench"].difference.p_value == pytest.approx(0.339, abs=1e-3)
    assert rows["videomme, long"].verdict == "not in the baseline"


def other_model(folder):
    write_run(folder, {"lvbench": right()}, model="qwen2_5_vl_flexselect")


def other_size(folder):
    write_run(folder, {"lvbench": right()}, upstream={"pretrained": "lmms-lab/LLaVA-Video-72B-Qwen2"})


def other_task(folder):
    write_run(folder, {"videomme": right()})


@pytest.mark.parametrize("write", [other_model, other_size, other_task])
def test_other_models_and_tasks_are_not_compared(tmp_path, write):
    write_run(tmp_path / "a", {"lvbench": right()})
    write(tmp_path / "b")
    with pytest.raises(FlexSelectError, match="nothing to compare") as caught:
        compare([tmp_path / "a"], tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_other_data_under_the_same_name_is_refused(tmp_path):
    write_run(tmp_path / "a", {"lvbench": right()})
    write_run(tmp_path / "b", {"lvbench": right()}, selector="none")
    (file,) = (tmp_path / "b").rglob("*_samples_lvbench.jsonl")
    file.write_text(file.read_text().replace('"target": "A"', '"target": "C"'))
    with pytest.raises(FlexSelectError, match=r"lvbench: right answers differ between .*: other data"):
        compare([tmp_path / "a"], tmp_path / "b")


def test_of_several_baselines_the_one_of_the_same_options_is_taken(tmp_path):
    write_run(tmp_path / "a", {"lvbench": right()})
    for number, (selector, budget) in enumerate([("none", 6720), ("flexselect", 6720), ("flexselect", 3360)]):
        wrong = set(range(number + 1))
        write_run(
            tmp_path / "b", {"lvbench": answers(wrong)}, f"2026010{number}", selector=selector, token_budget=budget
        )
    (row,) = compare([tmp_path / "a"], tmp_path / "b")
    assert row.baseline == pytest.approx(100 * 10 / 12)
    write_run(tmp_path / "c", {"lvbench": right()}, selector="uniform")
    with pytest.raises(FlexSelectError, match="the baseline has several runs to compare"):
        compare([tmp_path / "c"], tmp_path / "b")


def test_a_score_that_is_none_is_refused(tmp_path):
    file = write_run(tmp_path, {"lvbench": right()})
    file.write_text(file.read_text().replace('"lvbench_score,none": 1.0', '"lvbench_score,none": NaN'))
    with pytest.raises(FlexSelectError, match="lvbench has no score: lvbench_score is nan"):
        compare([tmp_path])


def test_unreadable_videos_are_noted(tmp_path):
    write_run(
        tmp_path, {"lvbench": right()}, unreadable=[{"task": "lvbench", "doc_id": 3, "error": "/v.mp4: is empty"}]
    )
    (row,) = compare([tmp_path])
    assert any("lvbench: 1 videos could not be read, first /v.mp4: is empty" in note for note in row.notes)


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_table_says_all_of_it(tmp_path, form):
    write_run(tmp_path, {"lvbench": answers({1}), "videomme": right()})
    write_run(tmp_path, {"lvbench": answers({1, 2})}, "20260102_000000", token_budget=3360)
    text = show_rows(compare([tmp_path]), form)
    lines = text.splitlines()
    columns = 11  # model … n, paper, from paper, vs paper, notes; nothing of a baseline
    if form == "markdown":
        assert {line.count("|") for line in lines if line.startswith("|")} == {columns + 2}
    assert "baseline" not in text
    assert "token_budget=3360" in text
    assert "91.67" in text
    assert "+38.77" in text  # 91.67 - 52.9
    notes = [line for line in lines if line.lstrip("- ").startswith("[")]
    assert any("token_budget=3360, the paper's 6720" in note for note in notes)
