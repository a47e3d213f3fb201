"""The paper's protocol as lmms-eval wants it: the stock tasks' functions, and ours where the protocol differs."""

from __future__ import annotations

import json
import random
import re
import threading
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download
from lmms_eval.tasks._task_utils import mmmu_mcq_utils
from lmms_eval.tasks.longvideobench.utils import (
    compute_frame_timestamps,
    insert_subtitles_into_frames,
    longvideobench_aggregate_results,
    longvideobench_doc_to_text,
    longvideobench_doc_to_visual_v,
)
from lmms_eval.tasks.longvideobench.utils import longvideobench_process_results as stock_longvideobench
from lmms_eval.tasks.mlvu.utils import mlvu_aggregate_results_dev
from lmms_eval.tasks.mlvu.utils import mlvu_process_results as stock_mlvu
from lmms_eval.tasks.videomme.utils import videomme_aggregate_results, videomme_doc_to_text, videomme_doc_to_visual
from lmms_eval.tasks.videomme.utils import videomme_process_results as stock_videomme

from lmms_flexselect.errors import FlexSelectError, first_line
from lmms_flexselect.models.upstream import replaced
from lmms_flexselect.runtime.hf_home import hf_home
from lmms_flexselect.tools.preparation.benchmarks import BENCHMARKS, find_video
from lmms_flexselect.tools.preparation.presence import read_questions

__all__ = [
    "longvideobench_aggregate_results",
    "longvideobench_doc_to_text",
    "longvideobench_doc_to_visual_v",
    "mlvu_aggregate_results_dev",
    "videomme_aggregate_results",
    "videomme_doc_to_text",
    "videomme_doc_to_visual",
]

Doc = dict[str, Any]
_one_parser = threading.Lock()  # lmms-eval may score in several threads


def first_letter(answer: str) -> str:
    """The first of A to D in an answer, or nothing: VideoMME and LVBench."""
    found = re.search("[ABCD]", answer)
    return found[0] if found else ""


def letter_before_bracket(answer: str) -> str:
    """What stands right before the first closing bracket, or the whole answer: MLVU, whose prompt opens the bracket."""
    before, bracket, _ = answer.strip().partition(")")
    return before[-1:] if bracket else before


def longvideobench_letter(answer: str, options: dict[str, str], question: str) -> str:
    """MMMU's parser, as the protocol has it: a letter is drawn where none is found.

    Drawn from the question's id and not from a common stream, so that runs of one and of many processes score alike.
    """
    with _one_parser, replaced(mmmu_mcq_utils, random=random.Random(question)):
        return mmmu_mcq_utils.parse_mmmu_multi_choice_response(answer, list(options), options)


def _scored(fields: Doc, answer: str, right: str, **more: Any) -> Doc:
    return {**fields, **more, "answer": right, "score": float(answer == right)}


def videomme_process_results(doc: Doc, results: list[str]) -> dict[str, Doc]:
    """The stock task's fields; a long video's question counts in both metrics."""
    letter = first_letter(results[0])
    fields = stock_videomme(doc, results)["videomme_perception_score"]
    item = _scored(fields, letter, doc["answer"], pred_answer=letter)
    metrics = {"videomme_perception_score": item}
    if doc["duration"] == "long":
        metrics["videomme_long_perception_score"] = item
    return metrics


def mlvu_doc_to_visual(doc: Doc) -> list[str]:
    """As the stock task's, but where HF_HOME is not set: that one then looks below the working directory."""
    return [str(hf_home() / BENCHMARKS["mlvu"].folder / doc["video_name"])]


def mlvu_doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """The same for every model."""
    return f"\n{doc['question']}\nAnswer with the best option's letter from the given choices directly.\nBest option: ("


def mlvu_process_results(doc: Doc, results: list[str]) -> dict[str, Doc]:
    """The stock task's fields, the score and the video."""
    letter = letter_before_bracket(results[0])
    fields = stock_mlvu(doc, results)["mlvu_percetion_score"]
    item = _scored(fields, letter, doc["answer"], pred_answer=letter, video_name=doc["video_name"])
    return {"mlvu_percetion_score": item}


def longvideobench_doc_to_text_with_subtitles(doc: Doc, lmms_eval_specific_kwargs: Doc) -> str:
    """The question behind the subtitles that overlap one of `subtitle_frames` evenly spread times.

    Raises
    ------
    FlexSelectError
        If the subtitle file cannot be read.
    """
    path = hf_home() / BENCHMARKS["longvideobench"].folder / "subtitles" / doc["subtitle_path"]
    try:
        subtitles = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FlexSelectError(f"{path}: cannot be read: run lmms-flexselect prepare longvideobench") from None
    times = compute_frame_timestamps(doc["duration"], lmms_eval_specific_kwargs["subtitle_frames"])
    inlined = inline_subtitles(subtitles, times, doc["starting_timestamp_for_subtitles"], doc["duration"])
    pre_prompt, plain = lmms_eval_specific_kwargs["pre_prompt"], {**lmms_eval_specific_kwargs, "pre_prompt": ""}
    return f"{pre_prompt}{inlined}\n{longvideobench_doc_to_text(doc, plain)}"


def inline_subtitles(subtitles: list[Doc], times: list[float], start: float, duration: float) -> str:
    """Subtitles that overlap one of `times`, in order, joined by "." with nothing in the place of every frame.

    Where the stock task writes ``<image>`` for a frame, the published runs wrote nothing and kept the separator, so
    that the prompt holds a dot for each. Which subtitles and in which order is the stock function's business: it gets
    numbers for texts, since a text may hold line breaks itself.
    """
    texts = [subtitle["text"] if "timestamp" in subtitle else subtitle["line"] for subtitle in subtitles]
    numbered = [{**subtitle, "text": str(n), "line": str(n)} for n, subtitle in enumerate(subtitles)]
    lines = insert_subtitles_into_frames(times, numbered, start, duration).split("\n")
    return ".".join(texts[int(line)] if line.isdigit() else "" for line in lines)


def longvideobench_process_results(doc: Doc, results: list[str]) -> dict[str, Doc]:
    """The stock task's fields, the score and the video."""
    options = {letter: doc[f"option{n}"] for n, letter in enumerate("ABCDE") if doc.get(f"option{n}", "N/A") != "N/A"}
    letter = longvideobench_letter(results[0], options, str(doc["id"]))
    fields = stock_longvideobench(doc, results)["lvb_acc"]
    return {"lvb_acc": _scored(fields, letter, fields["answer"], parsed_pred=letter, video_id=doc["video_id"])}


def lvbench_process_docs(source: datasets.Dataset) -> datasets.Dataset:
    """The questions of LVBench's own file, one a row, beside what the file says of their videos.

    Columns: ``key`` (the video), ``type``, ``video_info``, ``uid``, ``question`` with its options, ``answer``,
    ``question_type`` (a list), ``time_reference``. Known from copies of the file and code that reads it.

    Raises
    ------
    FlexSelectError
        If the file can be neither fetched nor read. (lmms-eval tries again and then names its own `RetryError`; this
        one stands above it in the output.)
    """
    repository, name = source[0]["repository"], source[0]["file"]
    *_, own = BENCHMARKS["lvbench"].questions
    try:
        path = hf_hub_download(repository, name, repo_type="dataset")
        return datasets.Dataset.from_list([dict(question) for question in read_questions(own, Path(path))])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise FlexSelectError(f"{name} of {repository}: run lmms-flexselect prepare lvbench ({reason})") from None


def lvbench_doc_to_visual(doc: Doc) -> list[str]:
    """The video of that id, as `find_video` looks for it; where it is expected if it is not there."""
    folder = hf_home() / BENCHMARKS["lvbench"].folder
    name = f"{doc['key']}.mp4"
    return [str(find_video(folder, name) or folder / name)]


def lvbench_doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Doc) -> str:
    """VideoMME's form without its mention of subtitles, and options without brackets."""
    question = re.sub(r"\(([ABCD])\)", r"\1", doc["question"])
    instruction = (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option."
    )
    return f"{instruction}\n{question}\n{lmms_eval_specific_kwargs['post_prompt']}"


def lvbench_process_results(doc: Doc, results: list[str]) -> dict[str, Doc]:
    """The score, the video, and what the question is of."""
    letter = first_letter(results[0])
    fields = {name: doc[name] for name in ("uid", "key", "type", "question_type")}
    return {"lvbench_score": _scored(fields, letter, doc["answer"], pred_answer=letter)}


def lvbench_aggregate_results(items: list[Doc]) -> float:
    """Mean accuracy, 0..1."""
    return sum(item["score"] for item in items) / len(items)
