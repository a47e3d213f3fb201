"""The needle tasks as lmms-eval wants them: a thin layer over `lmms_flexselect.needle.benchmark`."""

from __future__ import annotations

from typing import Any

from lmms_flexselect.needle.benchmark import answers_shape, video_path


def needle_doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The path of the document's video, generated on first use."""
    return [str(video_path(doc))]


def needle_doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question as the needle model was trained on it; `pre_prompt` and `post_prompt` are for other models."""
    texts = lmms_eval_specific_kwargs or {}
    return f"{texts.get('pre_prompt', '')}{doc['question']}{texts.get('post_prompt', '')}"


def needle_process_results(doc: dict[str, Any], results: list[str]) -> dict[str, dict[str, Any]]:
    """`needle_acc` is 1 when the answer's first word is the shape."""
    right = float(answers_shape(results[0], doc["shape"]))
    # lmms-eval's clustered error reads the score under `score_key` beside `cluster_key`, its paired test under "score".
    return {"needle_acc": {"needle_acc": right, "score": right, "video": doc["video"]}}


def needle_aggregate(items: list[dict[str, Any]]) -> float:
    """Mean accuracy, 0..1."""
    return sum(item["needle_acc"] for item in items) / len(items)
