"""Which document each row is, and what the measurements add up to."""

from __future__ import annotations

import pytest
import torch

from lmms_flexselect.models._records import DocumentLog, SampleRecord, gather, results_block, summarize
from lmms_flexselect.options import FlexSelectOptions


@pytest.fixture
def log():
    documents = DocumentLog()
    documents["videomme"] = {"test": [f"v{i}" for i in range(10)]}
    documents["mlvu"] = {"test": [f"m{i}" for i in range(4)], "dev": ["d0"]}
    return documents


def test_documents_are_handed_out_as_they_are(log):
    assert log["videomme"]["test"][3] == "v3"
    assert log["mlvu"]["dev"][0] == "d0"
    assert len(log["videomme"]["test"]) == 10
    assert "mlvu" in log
    with pytest.raises(KeyError):
        log["lvbench"]
    with pytest.raises(KeyError):
        log["mlvu"]["train"]


def test_keys_come_in_the_order_of_the_batch(log):
    for doc_id in (4, 1, 7):
        _ = log["videomme"]["test"][doc_id]
    assert log.last(3) == [("videomme", "test", 4), ("videomme", "test", 1), ("videomme", "test", 7)]


def test_a_batch_may_mix_tasks(log):
    _ = log["mlvu"]["dev"][0], log["videomme"]["test"][2]
    assert log.last(2) == [("mlvu", "dev", 0), ("videomme", "test", 2)]


def test_every_batch_starts_afresh(log):
    _ = log["mlvu"]["test"][0]
    assert log.last(1) == [("mlvu", "test", 0)]
    assert log.last(1) == [None]
    _ = log["mlvu"]["test"][1]
    assert log.last(1) == [("mlvu", "test", 1)]


def test_what_was_read_before_the_batch_does_not_count(log):
    for doc_id in range(5):
        _ = log["videomme"]["test"][doc_id]
    assert log.last(2) == [("videomme", "test", 3), ("videomme", "test", 4)]


def test_rows_that_come_from_no_task(log):
    _ = log["mlvu"]["test"][2]
    assert log.last(3) == [None, None, ("mlvu", "test", 2)]


def test_a_slice_is_not_a_turn(log):
    assert log["videomme"]["test"][2:4] == ["v2", "v3"]
    _ = log["videomme"]["test"][5]
    assert log.last(2) == [None, ("videomme", "test", 5)]


def test_a_missing_document_is_not_remembered_as_read(log):
    _ = log["mlvu"]["test"][0]
    with pytest.raises(IndexError):
        log["mlvu"]["test"][99]


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
    block = results_block({"selector": "reference"}, records)
    assert block["options"] == {"selector": "reference"}
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


def test_gathering_in_one_process():
    records = [record(0), record(1), record(0, task="mlvu")]
    assert gather(records) == records
    assert gather([]) == []


def test_a_sample_answered_twice_counts_once():
    """lmms-eval fills up the shorter shards with copies."""
    assert [r.doc_id for r in gather([record(0), record(1), record(1)])] == [0, 1]


def test_prompts_of_no_task_all_count():
    nameless = [record(-1, task=""), record(-1, task="")]
    assert gather([*nameless, record(0)]) == [record(0), *nameless]


def test_a_records_key():
    assert record(5, task="mlvu").key == ("mlvu", "test", 5)
