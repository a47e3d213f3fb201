"""Results recorded, and later ones held to the record."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores import check, record
from lmms_flexselect.tools.scores.expectation import read_expectation
from tests.support.results_files import SCORED, answers, right, write_run

NAME = "llava_vid_flexselect LLaVA-Video-7B-Qwen2 flexselect"


@pytest.fixture
def expect(tmp_path):
    """Sixty questions of LVBench, half of them right; a tolerance of five points."""
    write_run(tmp_path / "recorded", {"lvbench": answers(set(range(30)), 60)})
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", tolerance=5.0)
    return tmp_path / "expect.yaml"


def recorded_samples(file) -> Any:
    """Of a file with one score."""
    (run,) = read_expectation(file)
    return run.tasks[0].samples


def outcome(report):
    """Of a report with one case: its outcome and reason."""
    (case,) = report.cases
    assert "\n" not in case.reason
    assert report.passed == case.passed == (case.outcome in ("same", "improved"))
    return case.outcome, case.reason


def test_the_file_is_readable_and_stable(tmp_path):
    for number, name in enumerate("ba"):
        write_run(tmp_path / name, {task: answers({1, 5}) for task in SCORED}, selector=("none", "flexselect")[number])
    runs = record([tmp_path / "a", tmp_path / "b"], tmp_path / "one.yaml", 1.0, {"lvbench": 3.0})
    record([tmp_path], tmp_path / "new" / "other.yaml", 1.0, {"lvbench": 3.0})
    assert [run.selector for run in runs] == ["flexselect", "none"]
    text = (tmp_path / "one.yaml").read_text()
    assert text == (tmp_path / "new" / "other.yaml").read_text()
    assert text.startswith("# Written by `lmms-flexselect scores record`")
    assert str(tmp_path) not in text
    assert max(map(len, text.splitlines())) <= 120
    content = yaml.safe_load(text)
    assert content["versions"] == {"lmms_eval": "0.7.3", "torch": "2.9.0"}
    (reference, none) = content["runs"]
    assert (none["model"], none["checkpoint"], none["selector"]) == (*NAME.split()[:2], "none")
    assert reference["options"]["token_budget"] == 6720
    assert list(reference["tasks"]) == sorted(SCORED)
    assert reference["tasks"]["lvbench"] == {
        "score": 83.3333,
        "stderr": 11.2367,
        "n": 12,
        "tolerance": 3.0,
        "questions": reference["tasks"]["lvbench"]["questions"],
        "documents": "0-11",
        "correct": ["101110111111"],
    }
    assert reference["tasks"]["videomme"]["tolerance"] == 1.0
    assert "stderr" not in reference["tasks"]["mlvu_dev"]  # kinds of question with one of them
    assert check([tmp_path / "a", tmp_path / "b"], tmp_path / "one.yaml").passed


def test_long_answers_are_broken_into_lines(tmp_path):
    write_run(tmp_path, {"lvbench": answers(set(range(150)), 250)})
    record([tmp_path], tmp_path / "expect.yaml")
    lines = yaml.safe_load((tmp_path / "expect.yaml").read_text())["runs"][0]["tasks"]["lvbench"]["correct"]
    assert lines == ["0" * 100, "0" * 50 + "1" * 50, "1" * 50]
    assert recorded_samples(tmp_path / "expect.yaml").correct == [0.0] * 150 + [1.0] * 100


@pytest.mark.parametrize("last", [12, 20])
def test_documents_with_gaps(tmp_path, last):
    write_run(tmp_path, {"lvbench": right()})
    (file,) = tmp_path.rglob("*_samples_lvbench.jsonl")
    file.write_text(file.read_text().replace('"doc_id": 11,', f'"doc_id": {last},'))
    record([tmp_path], tmp_path / "expect.yaml")
    assert recorded_samples(tmp_path / "expect.yaml").documents == [*range(11), last]


def test_the_same_again(tmp_path, expect):
    report = check([tmp_path / "recorded"], expect)
    assert outcome(report) == ("same", "")
    (case,) = report.cases
    assert (case.run, case.task, case.recorded, case.score, case.p_value) == (NAME, "lvbench", 50.0, 50.0, 1.0)


@pytest.mark.parametrize(
    ("wrong", "expected", "says"),
    [
        (set(range(34)), "regression", "6.67 points lower, more than 5"),
        (set(range(31)), "same", ""),
        (set(range(1, 30)), "same", ""),
        (set(range(20)), "improved", "16.67 points higher: record anew"),
        # As many right as before, but other ones.
        (
            set(range(30, 60)),
            "too few samples",
            "standard error is 13.02 points, more than the tolerance (of the paired difference)",
        ),
    ],
    ids=["lower", "a little lower", "a little higher", "higher", "others"],
)
def test_answers_that_changed(tmp_path, expect, wrong, expected, says):
    write_run(tmp_path / "now", {"lvbench": answers(wrong, 60)})
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == expected
    assert says in reason


@pytest.mark.parametrize(
    ("fewer_right", "expected"),
    [(51, "regression"), (50, "same"), (49, "same"), (-50, "same"), (-51, "improved")],
)
def test_the_tolerance_is_five_points_and_no_more(tmp_path, fewer_right, expected):
    """Of 1000 questions each is a tenth of a point."""
    for folder, wrong in (("recorded", 500), ("now", 500 + fewer_right)):
        write_run(tmp_path / folder, {"lvbench": answers(set(range(wrong)), 1000)})
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", tolerance=5.0)
    assert outcome(check([tmp_path / "now"], tmp_path / "expect.yaml"))[0] == expected


def test_a_higher_score_by_chance_is_no_improvement(tmp_path):
    """One more of sixty is right: 1.67 points, with a standard error of as much."""
    for folder, wrong in (("recorded", 30), ("now", 29)):
        write_run(tmp_path / folder, {"lvbench": answers(set(range(wrong)), 60)})
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", tolerance=1.0)
    assert outcome(check([tmp_path / "now"], tmp_path / "expect.yaml"))[0] == "too few samples"


@pytest.mark.parametrize(("tolerance", "expected"), [(6.5, "too few samples"), (6.52, "same")])
def test_the_standard_error_may_be_as_large_as_the_tolerance(tmp_path, tolerance, expected):
    """Half of sixty answers right: 6.51 points."""
    write_run(tmp_path / "recorded", {"lvbench": answers(set(range(30)), 60)})
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", tolerance, with_samples=False)
    assert outcome(check([tmp_path / "recorded"], tmp_path / "expect.yaml"))[0] == expected


def test_right_answers_to_other_prompts(tmp_path):
    """Dropped positions, or another sampling, need not cost an answer."""
    means = {"visual_tokens": 600.0, "visual_tokens_kept": 64.0, "input_tokens": 90.0, "position_span": 631.25}

    def run(folder, **changed):
        by_task = {"lvbench": {**means, **changed, "time_to_first_token_seconds": 0.5}}
        write_run(tmp_path / folder, {"lvbench": answers(set(), 60)}, by_task=by_task)
        return [tmp_path / folder]

    record(run("recorded"), tmp_path / "expect.yaml")
    assert read_expectation(tmp_path / "expect.yaml")[0].tasks[0].prompts == means
    assert outcome(check(run("same", time_to_first_token_seconds=9.0), tmp_path / "expect.yaml")) == ("same", "")
    said, reason = outcome(check(run("little", visual_tokens=600.01), tmp_path / "expect.yaml"))
    assert (said, "visual_tokens was 600, now 600.01" in reason) == ("error", True)
    said, reason = outcome(check(run("other", position_span=90.0, input_tokens=91.0), tmp_path / "expect.yaml"))
    assert said == "error"
    assert "the model reads other prompts: input_tokens was 90, now 91, position_span was 631.25, now 90;" in reason
    write_run(tmp_path / "unmeasured", {"lvbench": answers(set(), 60)})
    assert outcome(check([tmp_path / "unmeasured"], tmp_path / "expect.yaml")) == ("same", "")


def test_too_few_samples_says_how_many_would_do(tmp_path, expect):
    write_run(tmp_path / "now", {"lvbench": answers(set(range(30, 60)), 60)})
    _, reason = outcome(check([tmp_path / "now"], expect))
    needed = int(reason.split("about ")[1].split()[0])
    assert needed == pytest.approx((2.8 * 1.0 / 0.05) ** 2, rel=0.01)  # each answer changed: a spread of one


def test_without_recorded_answers_the_scores_own_error_counts(tmp_path):
    write_run(tmp_path / "recorded", {"lvbench": answers(set(range(30)), 60)})
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", 5.0, with_samples=False)
    assert "correct:" not in (tmp_path / "expect.yaml").read_text()
    said, reason = outcome(check([tmp_path / "recorded"], tmp_path / "expect.yaml"))
    assert said == "too few samples"
    assert "standard error is 6.51 points, more than the tolerance (of the score: no answers were recorded)" in reason
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", 7.0, with_samples=False)
    assert outcome(check([tmp_path / "recorded"], tmp_path / "expect.yaml"))[0] == "same"


def test_one_video_tells_nothing_once_an_answer_changed(tmp_path):
    """Three questions of VideoMME share a video."""
    write_run(tmp_path / "recorded", {"videomme": answers({1}, 3)})
    record([tmp_path / "recorded"], tmp_path / "expect.yaml", 50.0)
    assert outcome(check([tmp_path / "recorded"], tmp_path / "expect.yaml"))[0] == "same"
    write_run(tmp_path / "now", {"videomme": answers({2}, 3)})
    said, reason = outcome(check([tmp_path / "now"], tmp_path / "expect.yaml"))
    assert (said, reason.split(" (")[0]) == (
        "too few samples",
        "the standard error is not known, for want of videos",
    )


def test_without_samples_now_the_scores_own_error_counts(tmp_path, expect):
    write_run(tmp_path / "now", {"lvbench": answers(set(range(30)), 60)}, log_samples=False)
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == "too few samples"
    assert "(of the score: it has no samples)" in reason


@pytest.mark.parametrize("n", [30, 90])
def test_another_number_of_questions(tmp_path, expect, n):
    write_run(tmp_path / "now", {"lvbench": right(n)}, of=100)
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == "too few samples"
    assert f"{n} questions, recorded were 60: run it with the same --limit" in reason


def test_other_questions_of_the_same_number(tmp_path, expect):
    write_run(tmp_path / "now", {"lvbench": answers(set(range(30)), 60)})
    (file,) = (tmp_path / "now").rglob("*_samples_lvbench.jsonl")
    file.write_text(file.read_text().replace("What is it", "Choose well. What is it"))
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == "error"
    assert "questions, prompts or right answers are not those recorded" in reason


def test_other_options_are_named_with_both_values(tmp_path, expect):
    write_run(tmp_path / "now", {"lvbench": right(60)}, token_budget=3360, upstream={"max_frames_num": "64"})
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == "error"
    assert "other options: max_frames_num was 512, now 64; token_budget was 6720, now 3360" in reason


def test_an_option_may_be_left_open(tmp_path, expect):
    expect.write_text(expect.read_text().replace("dtype: bfloat16", "dtype: any"))
    write_run(tmp_path / "now", {"lvbench": answers(set(range(30)), 60)}, dtype="float32")
    assert outcome(check([tmp_path / "now"], expect)) == ("same", "")


def test_where_and_how_it_ran_is_no_option(tmp_path, expect):
    elsewhere = {"pretrained": "/models/LLaVA-Video-7B-Qwen2", "device": "cpu", "batch_size": "4"}
    write_run(tmp_path / "now", {"lvbench": answers(set(range(30)), 60)}, upstream=elsewhere, dump_selection="out")
    assert outcome(check([tmp_path / "now"], expect)) == ("same", "")


@pytest.mark.parametrize("other", [{"selector": "random"}, {"model": "internvl_hf_flexselect"}])
def test_a_missing_run(tmp_path, expect, other):
    write_run(tmp_path / "now", {"lvbench": right(60)}, **other)
    report = check([tmp_path / "now"], expect)
    said, reason = outcome(report)
    assert said == "error"
    assert "no such run; found: " in reason
    assert len(report.notes) == 1
    assert "this run is not in" in report.notes[0]


def test_a_missing_task(tmp_path, expect):
    write_run(tmp_path / "now", {"videomme": right()})
    report = check([tmp_path / "now"], expect)
    said, reason = outcome(report)
    assert said == "error"
    assert reason.endswith("_results.json, which has videomme")
    assert "videomme is not in" in report.notes[0]


def test_a_task_without_a_score(tmp_path, expect):
    file = write_run(tmp_path / "now", {"lvbench": answers(set(range(30)), 60)})
    content = json.loads(file.read_text())
    for values in ({"alias": "lvbench"}, {"alias": "lvbench", "lvbench_score,none": float("nan")}):
        content["results"]["lvbench"] = values
        file.write_text(json.dumps(content))
        said, reason = outcome(check([tmp_path / "now"], expect))
        assert said == "error"
        assert "lvbench has no score" in reason


def test_unreadable_videos_are_an_error(tmp_path, expect):
    unreadable = [{"task": "lvbench", "split": "train", "doc_id": n, "error": f"/{n}.mp4: is empty"} for n in (1, 2)]
    write_run(tmp_path / "now", {"lvbench": answers(set(range(30)), 60)}, unreadable=unreadable, strict=False)
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == "error"
    assert "2 videos could not be read, first /1.mp4: is empty" in reason
    with pytest.raises(FlexSelectError, match="2 videos could not be read"):
        record([tmp_path / "now"], tmp_path / "other.yaml")


def no_folder(folder):
    pass


def empty_folder(folder):
    folder.mkdir()


def truncated(folder):
    file = write_run(folder, {"lvbench": right(60)})
    file.write_text(file.read_text()[:500])


def twice(folder):
    for date in ("20260101_000000", "20260102_000000"):
        write_run(folder, {"lvbench": right(60)}, date)


def foreign(folder):
    folder.mkdir()
    (folder / "a_results.json").write_text('{"results": {"acc": 1}}')


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (no_folder, "lmms-eval exits with 0 when it fails too"),
        (empty_folder, "lmms-eval exits with 0 when it fails too"),
        (truncated, "not whole JSON"),
        (twice, "twice, with the same options"),
        (foreign, "not one of lmms-eval's results files"),
    ],
)
def test_results_that_cannot_be_read_fail_every_case(tmp_path, expect, write, says):
    write(tmp_path / "now")
    said, reason = outcome(check([tmp_path / "now"], expect))
    assert said == "error"
    assert says in reason


def test_runs_that_differ_in_options_alone_find_their_own(tmp_path):
    budgets = (1680, 3360, 6720)
    for number, budget in enumerate(budgets):
        write_run(tmp_path, {"lvbench": answers(set(range(number)))}, f"2026010{number}", token_budget=budget)
    record([tmp_path], tmp_path / "expect.yaml")
    report = check([tmp_path], tmp_path / "expect.yaml")
    assert report.passed
    assert [case.run for case in report.cases] == [f"{NAME} token_budget={budget}" for budget in budgets]
    # One of them now with another budget: that one is told, the other two hold.
    middle = next(p for p in tmp_path.rglob("*_results.json") if '"token_budget": 3360' in p.read_text())
    middle.write_text(middle.read_text().replace('"token_budget": 3360', '"token_budget": 3361'))
    report = check([tmp_path], tmp_path / "expect.yaml")
    assert [case.outcome for case in report.cases] == ["same", "error", "same"]
    assert "token_budget was 3360, now 3361" in report.cases[1].reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runs: [", "not an expectation file"),
        ("", "not an expectation file"),
        ("runs: []", "expects nothing"),
        ("runs: [{model: m}]", "not an expectation file"),
        ("runs: [{model: m, checkpoint: c, selector: s, options: {}, tasks: {}}]", "expects nothing"),
        ("runs: 3", "not an expectation file"),
        ("versions: {torch: 1}", "not an expectation file"),
    ],
)
def test_files_that_expect_nothing(tmp_path, text, says):
    (tmp_path / "expect.yaml").write_text(text)
    with pytest.raises(FlexSelectError, match=says) as caught:
        check([tmp_path], tmp_path / "expect.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("score: 50.0", "score: .nan"), "score nan"),
        (("tolerance: 5.0", "tolerance: -1"), "tolerance -1"),
        (("n: 60", "n: 59"), "60 digits for 60 documents, n 59"),
        (("documents: 0-59", "documents: 0-58"), "60 digits for 59 documents"),
        (("- '0", "- '2"), "substring not found"),
        (("score: 50.0", "score: good"), "could not convert"),
    ],
)
def test_edited_into_nonsense(expect, change, says):
    assert change[0] in expect.read_text()
    expect.write_text(expect.read_text().replace(*change))
    with pytest.raises(FlexSelectError, match=says):
        read_expectation(expect)


def test_a_run_expected_twice(expect):
    text = expect.read_text()
    expect.write_text(text + text[text.index("- model") :])
    with pytest.raises(FlexSelectError, match="is in it twice, with the same options"):
        read_expectation(expect)


def test_no_expectation_file(tmp_path):
    with pytest.raises(FlexSelectError, match=r"expect\.yaml: cannot be read \(No such file or directory\)"):
        check([tmp_path], tmp_path / "expect.yaml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tolerance": -1}, "tolerance=-1: a tolerance is of 0 to 100 points"),
        ({"tolerance": float("nan")}, "a tolerance is of 0 to 100 points"),
        ({"by_task": {"lvbench": 100}}, "lvbench=100: a tolerance"),
        ({"by_task": {"lvbnch": 1}}, "a tolerance for lvbnch, which these results do not have"),
    ],
)
def test_tolerances_that_make_no_sense(tmp_path, arguments, says):
    write_run(tmp_path, {"lvbench": right()})
    with pytest.raises(FlexSelectError, match=says):
        record([tmp_path], tmp_path / "expect.yaml", **arguments)
    assert not (tmp_path / "expect.yaml").exists()


def test_nothing_wrong_is_recorded(tmp_path, expect):
    """And what was there before stays."""
    before = expect.read_text()
    file = write_run(tmp_path / "now", {"lvbench": right()})
    file.write_text(file.read_text().replace('"lvbench_score,none": 1.0', '"lvbench_score,none": NaN'))
    with pytest.raises(FlexSelectError, match="lvbench has no score"):
        record([tmp_path / "now"], expect)
    assert expect.read_text() == before
    assert sorted(path.name for path in tmp_path.glob("expect*")) == ["expect.yaml"]
