"""Results and samples files: what is read out of them, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores import read_runs
from lmms_flexselect.tools.scores.run_options import option_differences
from lmms_flexselect.tools.scores.runs import distinct_names, refuse_problems
from tests.support.results_files import SCORED, answers, right, write_run


def read(*places: Path) -> Any:
    """The runs in there, of whatever they have."""
    return read_runs(places)


def edit(file, change):
    """Rewrite a results file after `change` was made to its content."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def problem(*places):
    """What reading these is refused with."""
    with pytest.raises(FlexSelectError) as caught:
        refuse_problems(read_runs(places))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_of_the_stock_tasks(tmp_path):
    file = write_run(tmp_path, {task: answers({1, 5}) for task in SCORED}, of=100)
    (run,) = read(tmp_path)
    assert (run.file, run.model, run.checkpoint, run.selector) == (
        file,
        "llava_vid_flexselect",
        "LLaVA-Video-7B-Qwen2",
        "flexselect",
    )
    assert run.options["max_frames_num"] == 512
    assert run.options["token_budget"] == 6720
    assert not {"pretrained", "device", "batch_size", "strict", "dump_selection", "selector"} & set(run.options)
    # Percent and shares alike; M-Avg is the mean over seven kinds of question: 1/2 of the second, 1/2 of the sixth.
    assert {task: round(score.points, 2) for task, score in run.scores.items()} == {
        "videomme": 83.33,
        "mlvu_dev": round(100 * 5.5 / 7, 2),
        "longvideobench_val_v": 83.33,
        "lvbench": 83.33,
    }
    for task, score in run.scores.items():
        assert score.problem is None
        assert (score.metric, score.n, score.of) == (SCORED[task].metric, 12, 100)
        assert score.samples.documents == list(range(12))
        assert [document for document, c in enumerate(score.samples.correct) if not c] == [1, 5]
        assert 100 * score.samples.score() == pytest.approx(score.points, abs=1e-3)
    videos = {task: score.samples.videos for task, score in run.scores.items()}
    assert videos["videomme"] == [f"video{i // 3}" for i in range(12)]
    assert videos["longvideobench_val_v"] == [f"video{i}" for i in range(12)]
    assert videos["mlvu_dev"] == videos["lvbench"] == []
    assert run.scores["videomme"].samples.durations == ["short", "medium", "long"] * 4


def test_without_samples_the_reported_error_is_read(tmp_path):
    write_run(tmp_path, {task: answers({1, 5}) for task in SCORED}, log_samples=False)
    (run,) = read(tmp_path)
    assert {task: score.samples for task, score in run.scores.items()} == dict.fromkeys(SCORED)
    assert run.scores["videomme"].reported_stderr == pytest.approx(8.942, abs=1e-3)  # clustered, and in points
    assert run.scores["lvbench"].reported_stderr == pytest.approx(11.237, abs=1e-3)
    assert run.scores["mlvu_dev"].reported_stderr is None
    assert run.scores["lvbench"].points == pytest.approx(250 / 3)


def test_the_fingerprint_is_of_questions_not_of_answers(tmp_path):
    write_run(tmp_path / "a", {"lvbench": right()})
    write_run(tmp_path / "b", {"lvbench": answers({3})}, selector="none")
    write_run(tmp_path / "c", {"lvbench": right(6)}, selector="uniform")
    one, other, fewer = (run.scores["lvbench"].samples.fingerprint for run in read(tmp_path))
    assert one == other != fewer


def test_a_run_of_upstreams_own_model(tmp_path):
    """It says no resolved options: those given stand for them."""
    file = write_run(tmp_path, {"lvbench": right()}, model="llava_vid")

    def plain(content):
        del content["config"]["resolved_cli_args"]["flexselect"]
        content["config"]["model_args"] = "pretrained=/models/LLaVA-Video-7B-Qwen2/,max_frames_num=64"

    edit(file, plain)
    (run,) = read_runs([file])
    assert (run.name, run.selector, run.options) == ("llava_vid LLaVA-Video-7B-Qwen2", "", {"max_frames_num": 64})


def test_groups_are_not_scores(tmp_path):
    file = write_run(tmp_path, {"lvbench": right()})
    edit(file, lambda c: c["results"].update(all={" ": " "}) or c["group_subtasks"].update(all=["lvbench"]))
    (run,) = read_runs([file])
    assert list(run.scores) == ["lvbench"]


@pytest.mark.parametrize(("said", "points"), [(0.625, 62.5), (1.0, 100.0), (62.5, 62.5)])
def test_a_score_without_samples_is_a_percentage_above_one(tmp_path, said, points):
    file = write_run(tmp_path, {"lvbench": right()}, log_samples=False)
    edit(file, lambda content: content["results"]["lvbench"].update({"lvbench_score,none": said}))
    (run,) = read_runs([file])
    assert (run.scores["lvbench"].points, run.scores["lvbench"].problem) == (points, None)


@pytest.mark.parametrize(
    ("limit", "offset", "n"),
    [(0.01, 0, 12), (0.0101, 0, 13), (12, 0, 12), (12, 1195, 5)],
    ids=["share", "rounded up", "number", "offset"],
)
def test_how_many_were_asked(tmp_path, limit, offset, n):
    """lmms-eval's own count knows of no share and of no offset."""
    file = write_run(tmp_path, {"lvbench": right()}, log_samples=False)

    def limited(content):
        content["n-samples"]["lvbench"] = {"original": 1200, "effective": limit}
        content["config"]["offset"] = offset

    edit(file, limited)
    (run,) = read_runs([file])
    assert run.scores["lvbench"].n == n


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not whole JSON"),
        ('{"results": {"lvbench": {', "not whole JSON"),
        ("[1, 2]", "not one of lmms-eval's results files: it has no results"),
        ('{"results": {}, "config": {}}', "not one of lmms-eval's results files: it has no configs"),
        ('{"results": {}, "configs": {}, "config": {}, "n-samples": {}}', "no task in it"),
        ('{"results": [], "configs": {}, "config": {}, "n-samples": {}}', "it has no results"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_are_not_results(tmp_path, content, says):
    file = tmp_path / "20260101_000000_results.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = problem(tmp_path)
    assert str(file) in said
    assert says in said


@pytest.mark.parametrize(
    "content",
    [
        {"results": {"t": 1}, "configs": {"t": []}, "config": {"model_args": 3}, "n-samples": {"t": "many"}},
        {"results": {"t": {"m,none": 1}}, "configs": {}, "config": {"resolved_cli_args": []}, "n-samples": {}},
        {
            "results": {"t": {"m,none": 0.5}},
            "configs": {"t": {"metric_list": [3]}},
            "config": {"resolved_cli_args": {"flexselect": {"options": 1, "unreadable": [1, {}]}}},
            "n-samples": {"t": {"original": 3, "effective": 0}},
        },
        {
            "results": {"t": {"m,none": "NaN", "videomme_long_perception_score,none": "N/A"}},
            "configs": {"t": {"metric_list": 3}},
            "config": {"offset": "two", "resolved_cli_args": {"flexselect": {"unreadable": 5}}},
            "n-samples": {"t": {"original": 3, "effective": 3}},
        },
    ],
)
def test_foreign_content_is_a_line_and_not_a_traceback(tmp_path, content):
    (tmp_path / "a_results.json").write_text(json.dumps(content))
    assert "t" in problem(tmp_path)


def test_no_results_at_all(tmp_path):
    """What a failed lmms-eval leaves behind."""
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "missing"):
        assert "lmms-eval exits with 0 when it fails too" in problem(place)


@pytest.mark.parametrize("value", [math.nan, math.inf, "N/A", None])
def test_a_score_that_is_none(tmp_path, value):
    file = write_run(tmp_path, {"lvbench": right(), "videomme": right()})
    edit(file, lambda content: content["results"]["lvbench"].update({"lvbench_score,none": value}))
    assert f"{file}: lvbench has no score" in problem(tmp_path)


def test_a_task_without_metrics(tmp_path):
    file = write_run(tmp_path, {"lvbench": right()})
    edit(file, lambda content: content["results"].update(lvbench={"alias": "lvbench"}))
    assert "lvbench has no score: lvbench_score is not there" in problem(tmp_path)


def test_a_score_that_is_no_accuracy(tmp_path):
    file = write_run(tmp_path, {"lvbench": right()}, log_samples=False)
    edit(file, lambda content: content["results"]["lvbench"].update({"lvbench_score,none": 999}))
    assert "no score of 0 to 100" in problem(tmp_path)
    file = write_run(tmp_path, {"lvbench": right()}, log_samples=False)
    edit(file, lambda content: content["higher_is_better"]["lvbench"].update(lvbench_score=False))
    assert "where higher is better" in problem(tmp_path)


def test_the_same_run_twice_names_both_files(tmp_path):
    one = write_run(tmp_path, {"lvbench": right()})
    other = write_run(tmp_path, {"lvbench": answers({1}), "videomme": right()}, date="20260102_000000")
    said = problem(tmp_path)
    assert "has lvbench twice, with the same options" in said
    assert str(one) in said
    assert str(other) in said
    assert len(read_runs([one, one.parent / "." / one.name])) == 1  # the same file, not the same run


def test_runs_of_other_options_or_tasks_are_other_runs(tmp_path):
    write_run(tmp_path, {"lvbench": right()})
    write_run(tmp_path, {"lvbench": right()}, date="20260102_000000", token_budget=3360)
    write_run(tmp_path, {"videomme": right()}, date="20260103_000000")
    names = distinct_names(read_runs([tmp_path]))
    common = "llava_vid_flexselect LLaVA-Video-7B-Qwen2 flexselect"
    assert names == [f"{common} token_budget={budget}" for budget in (6720, 3360, 6720)]


def drop_a_sample(lines):
    return lines[:-1]


def cut_the_last_line(lines):
    return [*lines[:-1], lines[-1][:40]]


def sample_twice(lines):
    return [*lines[:-1], lines[0]]


def other_answers(lines):
    return [line.replace('"lvbench_score": true', '"lvbench_score": false') for line in lines]


def other_hash(lines):
    return [line.replace('"doc_hash": "', '"doc_hash": "0') for line in lines]


def not_samples(lines):
    return ["[]" for _ in lines]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_a_sample, "hash of its 11 documents"),
        (cut_the_last_line, "line 12 is not whole JSON"),
        (sample_twice, "document 0 is in it twice"),
        (other_answers, "its samples make 0.00, but its results file says 100.00"),
        (other_hash, "does not fit its results file"),
        (not_samples, "line 1 is not one of lmms-eval's samples"),
        (lambda lines: [], "no samples in it"),
    ],
)
def test_samples_that_do_not_fit(tmp_path, change, says):
    write_run(tmp_path, {"lvbench": right()})
    (file,) = tmp_path.rglob("*_samples_lvbench.jsonl")
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))
    said = problem(tmp_path)
    assert str(file) in said
    assert says in said


def test_fewer_samples_than_questions(tmp_path):
    file = write_run(tmp_path, {"lvbench": right()})
    edit(file, lambda content: content["n-samples"].update(lvbench={"original": 50, "effective": 13}))
    assert "12 samples, but its results file says 13 of lvbench" in problem(tmp_path)


def test_samples_of_another_task_with_no_scores_are_left_out(tmp_path):
    """Captions and the like: a score, but not a mean of right and wrong."""
    file = write_run(tmp_path, {"lvbench": right()})
    samples = next(tmp_path.rglob("*_samples_lvbench.jsonl"))
    samples.rename(samples.with_name(samples.name.replace("lvbench", "captions")))

    def renamed(content):
        for block in ("results", "configs", "n-samples", "task_hashes"):
            content[block]["captions"] = content[block].pop("lvbench")
        content["results"]["captions"]["lvbench_score,none"] = 0.25

    edit(file, renamed)
    (run,) = read_runs([file])
    assert (run.scores["captions"].points, run.scores["captions"].samples) == (25.0, None)


def test_line_separators_inside_a_question(tmp_path):
    write_run(tmp_path, {"lvbench": right()})
    (file,) = tmp_path.rglob("*_samples_lvbench.jsonl")
    file.write_text(file.read_text().replace("What is it", "What\u2028is\u0085it"))
    (run,) = read(tmp_path)
    assert run.scores["lvbench"].problem is None


def test_option_differences():
    expected = {"a": 1, "b": "any", "c": None, "gone": 2}
    assert option_differences(expected, {"a": 1.0, "b": 5, "new": 3}) == {"gone": (2, None), "new": (None, 3)}
