"""Which document each row is, and what the measurements add up to."""

from __future__ import annotations

import pytest
import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts, unwrap_generation_output

from lmms_flexselect.models.records import SampleRecord, answer_of, results_block, summarize
from lmms_flexselect.options import FlexSelectOptions


def record(doc_id=0, task="videomme", error=None, **measured):
    numbers = {
        "video_seconds": 1.0,
        "time_to_first_token_seconds": 2.0,
        "selector_seconds": 0.5,
        "generate_seconds": 3.0,
        "visual_tokens": 100,
        "visual_tokens_kept": 10,
        "input_tokens": 30,
        "position_span": 50,
        "output_tokens": 4,
        "peak_memory_gib": 1.5,
    }
    return SampleRecord(task=task, split="test", doc_id=doc_id, error=error, **{**numbers, **measured})


def test_means_are_of_answered_samples_only():
    records = [
        record(0, visual_tokens=100, peak_memory_gib=1.0),
        record(1, visual_tokens=300, peak_memory_gib=4.0),
        record(2, visual_tokens=0, peak_memory_gib=9.0, error="a.mp4: no such video file"),
    ]
    summary = summarize(records)
    assert summary == {
        "samples": 3,
        "unreadable_videos": 1,
        "video_seconds": 1.0,
        "time_to_first_token_seconds": 2.0,
        "selector_seconds": 0.5,
        "visual_tokens": 200.0,
        "visual_tokens_kept": 10.0,
        "input_tokens": 30.0,
        "position_span": 50.0,
        "peak_memory_gib": 4.0,
    }


def test_summaries_of_nothing():
    assert summarize([]) == {"samples": 0, "unreadable_videos": 0}
    assert summarize([record(error="x")]) == {"samples": 1, "unreadable_videos": 1}


def test_summarize_takes_any_iterable():
    assert summarize(r for r in [record(), record(1)])["samples"] == 2


def test_results_block():
    records = [record(0), record(3, task="mlvu", visual_tokens=50), record(1, error="/a.mp4: is empty")]
    block = results_block({"selector": "flexselect"}, records)
    assert block["options"] == {"selector": "flexselect"}
    assert torch.__version__.startswith(block["versions"]["torch"])
    assert list(block["versions"]) == ["lmms_flexselect", "lmms_eval", "transformers", "torch"]
    assert block["overall"] == summarize(records)
    assert list(block["by_task"]) == ["mlvu", "videomme"]
    assert block["by_task"]["mlvu"] == summarize([records[1]])
    assert block["by_task"]["videomme"]["unreadable_videos"] == 1
    assert block["unreadable"] == [{"task": "videomme", "split": "test", "doc_id": 1, "error": "/a.mp4: is empty"}]


def test_lmms_eval_takes_none_of_it_for_a_secret():
    """It blanks out what is named like one (``…_token``) before it writes the results file."""
    from lmms_eval.evaluator import _redact_eval_config_secrets

    block = results_block(FlexSelectOptions().to_dict(), [record(0), record(1, error="/a.mp4: is empty")])
    assert _redact_eval_config_secrets(block) == block
    assert _redact_eval_config_secrets({"hf_token": "x"}) != {"hf_token": "x"}


def test_a_document_may_have_several_records():
    """Repeats, rounds, the continuations of a multiple choice: each is a prompt that was answered."""
    records = [record(0), record(0, input_tokens=40), record(1)]
    block = results_block({}, [*records, record(1, error="/a.mp4: is empty"), record(1, error="/a.mp4: is empty")])
    assert (block["overall"]["samples"], block["overall"]["unreadable_videos"]) == (5, 2)
    assert block["overall"]["input_tokens"] == pytest.approx((30 + 40 + 30) / 3)
    assert [failed["doc_id"] for failed in block["unreadable"]] == [1]


def test_positions_are_averaged_over_prompts_that_have_them():
    with_videos = [record(0, position_span=50), record(1, position_span=70)]
    without = [record(2, position_span=None)] * 5
    assert summarize([*with_videos, *without])["position_span"] == 60
    assert "position_span" not in summarize(without)


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("generate_until", "A", "A"),
        ("generate_until", GenerationResult("A", TokenCounts(output_tokens=9)), "A"),
        ("generate_until_multi_round", ("A", "B"), ["A", "B"]),
        ("generate_until_multi_round", ["A"], ["A"]),
        ("loglikelihood", [0.5, True], (0.5, True)),
    ],
)
def test_what_the_evaluator_gets(kind, given, text):
    """It takes a bare pair, or a tuple of texts, for a text."""
    answer = answer_of(kind, given, [record(0), record(0, input_tokens=40)])
    assert unwrap_generation_output(answer) == (text, TokenCounts(70, 8))
    assert answer.error is None
    assert answer_of(kind, given).token_counts is None
    assert answer_of(kind, given, [record(0), record(0, error="bad.mp4: is empty")]).error == "bad.mp4: is empty"


def test_a_likelihood_is_the_pair_that_was_promised():
    loss, is_greedy = answer_of("loglikelihood", (0.5, True))
    assert (loss, is_greedy) == (0.5, True)


def test_a_records_key():
    assert record(5, task="mlvu").key == ("mlvu", "test", 5)
