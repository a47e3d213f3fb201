"""Prompts, parsers and scores of the paper's protocol, on documents in the data sets' own columns."""

from __future__ import annotations

import json
import random

import pytest

from lmms_flexselect.errors import FlexSelectError
from tests.support.stock_tasks import STOCK_TASKS

DEFAULT = {"pre_prompt": "", "post_prompt": "\nAnswer with the option's letter from the given choices directly."}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The best answer is: D", "D"),
        ("Answer: B", "A"),  # the protocol's first capital of A to D, right or wrong
        ("b", ""),
        ("E", ""),
        ("", ""),
    ],
)
def test_first_letter(utils, answer, letter):
    assert utils.first_letter(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A) the red one", "A"),
        ("(B) two", "B"),
        (" C)", "C"),
        ("D", "D"),
        (") A)", ""),
        ("the first one", "the first one"),  # wrong, not repaired
        ("A. the red one", "A. the red one"),
        ("", ""),
    ],
)
def test_letter_before_bracket(utils, answer, letter):
    assert utils.letter_before_bracket(answer) == letter


OPTIONS = {"A": "a red ball", "B": "nothing", "C": "two dogs", "D": "rain", "E": "a train"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("E.", "E"), ("(C)", "C"), ("C. two dogs", "C"), ("it must have been two dogs I think", "C")],
)
def test_longvideobench_letter(utils, answer, letter):
    assert utils.longvideobench_letter(answer, OPTIONS, "q") == letter


def test_an_unreadable_answer_draws_a_letter_by_its_question(utils):
    before = random.getstate()
    drawn = [utils.longvideobench_letter("?", OPTIONS, f"q{n}") for n in range(200)]
    assert random.getstate() == before  # the common stream, which lmms-eval seeds, is left alone
    assert drawn == [utils.longvideobench_letter("?", OPTIONS, f"q{n}") for n in range(200)]
    assert set(drawn) == set(OPTIONS)
    assert all(20 <= drawn.count(letter) <= 60 for letter in OPTIONS)


def test_mlvu_prompt(utils):
    doc = {"question": "How many?\n(A) 1\n(B) 2"}
    assert utils.mlvu_doc_to_text(doc) == (
        "\nHow many?\n(A) 1\n(B) 2\n"
        "Answer with the best option's letter from the given choices directly.\nBest option: ("
    )


def test_lvbench_prompt(utils):
    doc = {"question": "What of (E)?\n(A) one (B)\n(B) two\n(C) three\n(D) four"}
    assert utils.lvbench_doc_to_text(doc, {"post_prompt": "The best answer is:"}) == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n"
        "What of (E)?\nA one B\nB two\nC three\nD four\nThe best answer is:"
    )


@pytest.mark.parametrize(
    ("spoken", "start", "expected"),
    [
        # Times 0, 1, 2, 3: a dot between any two of four frames and the texts.
        ([{"timestamp": [0.5, 1.5], "text": "hi"}], 0.0, "..hi.."),
        ([{"start": "00:00:00.500", "end": "00:00:01.500", "line": "hi"}], 0.0, "..hi.."),
        ([{"timestamp": [0.2, 0.8], "text": "between"}], 0.0, "..."),  # is dropped: no time in it even when widened
        ([{"timestamp": [0.9, 1.1], "text": "short"}], 0.0, "..short.."),
        ([{"timestamp": [2.5, None], "text": "open end"}], 0.0, "....open end"),
        ([{"timestamp": [10.5, 11.5], "text": "later"}], 10.0, "..later.."),
        ([{"timestamp": [0.5, 1.5], "text": "two\nlines"}], 0.0, "..two\nlines.."),
        ([{"timestamp": [0.5, 1.5], "text": "7"}, {"timestamp": [1.6, 2.4], "text": "8"}], 0.0, "..7..8."),
        ([], 0.0, "..."),
    ],
)
def test_subtitles_inlined(utils, spoken, start, expected):
    assert utils.inline_subtitles(spoken, [0.0, 1.0, 2.0, 3.0], start, 4.0) == expected


def test_subtitles_without_a_frame(utils):
    assert utils.inline_subtitles([], [], 0.0, 0.5) == ""


def test_subtitles_stand_before_the_question(utils, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    doc = STOCK_TASKS["longvideobench_val_v"].row(0)
    kwargs = {"pre_prompt": "Look. ", "post_prompt": "Answer.\n", "subtitle_frames": 64}
    with pytest.raises(FlexSelectError, match=r"video0_en.json: cannot be read: run lmms-flexselect prepare longv"):
        utils.longvideobench_doc_to_text_with_subtitles(doc, kwargs)
    path = tmp_path / "datasets" / "longvideobench" / "subtitles" / doc["subtitle_path"]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"timestamp": [1.5, 2.5], "text": "Es schneit ja, né"}]), encoding="utf-8")
    text = utils.longvideobench_doc_to_text_with_subtitles(doc, kwargs)
    assert text.startswith("Look. ...Es schneit ja, né...\nWhat happens at 0?\nA. square\n")  # 6 s: 6 times
    plain = utils.longvideobench_doc_to_text(doc, {**kwargs, "pre_prompt": ""})
    assert text.endswith(f"\n{plain}")
    path.write_text("[{")
    with pytest.raises(FlexSelectError, match="cannot be read"):
        utils.longvideobench_doc_to_text_with_subtitles(doc, kwargs)


def test_videomme_scores_all_and_long(utils):
    rows = [STOCK_TASKS["videomme"].row(n) for n in range(3)]  # short, medium, long; A, B, C
    metrics = [utils.videomme_process_results(row, ["C"]) for row in rows]
    assert [set(m) for m in metrics] == [{"videomme_perception_score"}] * 2 + [
        {"videomme_perception_score", "videomme_long_perception_score"}
    ]
    overall = [m["videomme_perception_score"] for m in metrics]
    assert [item["score"] for item in overall] == [0.0, 0.0, 1.0]
    assert utils.videomme_aggregate_results(overall) == pytest.approx(100 / 3)
    assert utils.videomme_aggregate_results([metrics[2]["videomme_long_perception_score"]]) == 100


def test_videomme_reads_other_than_the_stock_parser(utils):
    """The stock parser takes the answer's last standalone letter."""
    doc = {**STOCK_TASKS["videomme"].row(0), "answer": "A"}
    assert utils.videomme_process_results(doc, ["Answer: B"])["videomme_perception_score"]["score"] == 1.0
    assert utils.stock_videomme(doc, ["Answer: B"])["videomme_perception_score"]["score"] == 0.0


def test_mlvu_is_the_mean_of_seven_kinds(utils):
    rows = [{**STOCK_TASKS["mlvu_dev"].row(n % 7), "answer": "A"} for n in range(8)]  # the first kind twice
    answers = ["A)"] * 7 + ["B)"]
    items = [utils.mlvu_process_results(row, [a])["mlvu_percetion_score"] for row, a in zip(rows, answers, strict=True)]
    assert [item["score"] for item in items] == [1.0] * 7 + [0.0]
    assert utils.mlvu_aggregate_results_dev(items) == pytest.approx(100 * (6 + 0.5) / 7)


def test_longvideobench_is_a_fraction(utils):
    rows = [STOCK_TASKS["longvideobench_val_v"].row(n) for n in range(4)]
    items = [utils.longvideobench_process_results(row, ["B"])["lvb_acc"] for row in rows]
    assert [item["score"] for item in items] == [0.0, 1.0, 0.0, 0.0]
    assert utils.longvideobench_aggregate_results(items) == 0.25


def test_longvideobench_draws_among_the_options_there_are(utils):
    row = {**STOCK_TASKS["longvideobench_val_v"].row(0), "option2": "N/A", "option3": "N/A"}
    drawn = {utils.longvideobench_process_results({**row, "id": n}, ["?"])["lvb_acc"]["parsed_pred"] for n in range(40)}
    assert drawn == {"A", "B"}


def test_lvbench_is_a_fraction(utils):
    doc = {"uid": "1", "key": "v", "type": "tv", "question_type": ["reasoning"], "answer": "B"}
    items = [utils.lvbench_process_results(doc, [answer])["lvbench_score"] for answer in ("B", "The B", "A", "")]
    assert [item["pred_answer"] for item in items] == ["B", "B", "A", ""]
    assert utils.lvbench_aggregate_results(items) == 0.5


def test_mlvu_videos_without_hf_home(utils, monkeypatch, tmp_path):
    """The stock function would look in ./~/.cache."""
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "huggingface" / "mlvu" / "1_plotQA" / "x.mp4"
    assert utils.mlvu_doc_to_visual({"video_name": "1_plotQA/x.mp4"}) == [str(expected)]


def test_lvbench_videos_are_found_however_they_were_unpacked(utils, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "lvbench"
    assert utils.lvbench_doc_to_visual({"key": "id"}) == [str(folder / "id.mp4")]  # where it is expected
    below = folder / "videos" / "id.mp4"
    below.parent.mkdir(parents=True)
    below.touch()
    assert utils.lvbench_doc_to_visual({"key": "id"}) == [str(below)]
    (folder / "id.mkv").touch()
    assert utils.lvbench_doc_to_visual({"key": "id"}) == [str(folder / "id.mkv")]
