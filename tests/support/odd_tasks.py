"""Tasks of odd kinds for the real command: of images, of several rounds, of likelihoods, of sampled answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_UTILS = '''
import ctypes
import time

from PIL import Image


def visuals(doc):
    picture = [Image.new("RGB", (56, 56), (10 * doc["id"], 80, 80))] if doc["image"] else []
    return picture + ([doc["video"]] if doc["video"] else [])


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == doc["rounds"]:
        return None, None, True, previous_output, None
    return [doc["later"]], f"And in round {round_idx}?", False, previous_output, None


def answered(doc, results):
    return {"rounds_answered": len(results[0]) if isinstance(results[0], list) else 1}


def stuck(read):
    """A decoder that never comes back from native code, where a video is called so."""

    def reading(element, *how):
        if "stuck" in str(element["video"]):
            print("reading what is stuck", flush=True)
            ctypes.CDLL(None).sleep(600)
        return read(element, *how)

    return reading


import lmms_flexselect.models.grid_media as media  # noqa: E402

media.read_video_bytes = stuck(media.read_video_bytes)
'''

_KINDS: dict[str, dict[str, Any]] = {
    "asked": {"output_type": "generate_until", "doc_to_text": "text"},
    "rounds": {"output_type": "generate_until_multi_round", "doc_to_text": "rounds"},
    "choice": {"output_type": "multiple_choice", "doc_to_text": "text", "doc_to_choice": ["A circle.", "B", "C"]},
    "sampled": {"output_type": "generate_until", "doc_to_text": "text"},
}


def document(number: int, video: str | Path = "", image: bool = False, later: str | Path = "") -> dict[str, Any]:
    """A row: which video and whether an image is shown, and what is shown in the second of its two or three rounds."""
    question = f"What is it in question {number}?"
    shown = {"video": str(video), "image": image, "later": str(later or video)}
    return {"id": number, "question": question, "answer": 0, "rounds": 2 + number % 2, **shown}


def write(folder: Path, tasks: Mapping[str, tuple[str, Sequence[dict[str, Any]]]]) -> Path:
    """Tasks by name, each a kind and its documents; returns the folder for ``--include_path``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(_UTILS)
    for name, (kind, documents) in tasks.items():
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in documents))
        sampled = {"temperature": 1.0, "do_sample": True} if kind == "sampled" else {"temperature": 0}
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "doc_to_target": "answer",
            "metadata": [{"version": 1.0}],
            **_KINDS[kind],
        }
        if kind != "choice":
            config["generation_kwargs"] = {"max_new_tokens": 4, "until": ["\n\n"], **sampled}
            metric = {"metric": "rounds_answered", "aggregation": "mean", "higher_is_better": True}
        else:
            metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        content = yaml.safe_dump({**config, "metric_list": [metric]}).replace(
            f"doc_to_text: {config['doc_to_text']}\n", f"doc_to_text: !function utils.{config['doc_to_text']}\n"
        )
        content += "doc_to_visual: !function utils.visuals\n"
        if kind != "choice":
            content += "process_results: !function utils.answered\n"
        (folder / f"{name}.yaml").write_text(content)
    return folder
