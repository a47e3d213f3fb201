"""The four stock tasks' data sets, laid out on disk as lmms-eval expects them, with small synthetic videos.

With ``HF_HUB_OFFLINE=1`` the unchanged task YAMLs find their questions in a prepared arrow cache and their videos in
the folders that lmms-eval would have unpacked them to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.parquet.parquet import Parquet

from lmms_flexselect.needle.videos import write_video

_NO_REVISION = "0" * 40
_SHAPES = ["square", "circle", "star", "none"]


@dataclass(frozen=True)
class StockTask:
    """Where one task looks: hub name, split, video folder under HF_HOME, its rows, and the video of a row."""

    repository: str
    split: str
    folder: str
    row: Callable[[int], dict[str, Any]]
    video: Callable[[dict[str, Any]], str]


def _videomme(i: int) -> dict[str, Any]:
    return {
        "video_id": f"{i // 3:03d}",
        "duration": ["short", "medium", "long"][i % 3],
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "url": "",
        "videoID": f"video{i // 3}",
        "question_id": f"{i // 3:03d}-{i % 3}",
        "task_type": ["Counting Problem", "Action Recognition", "OCR Problems"][i % 3],
        "question": f"What is shown in part {i}?",
        "options": [f"{letter}. A {shape}." for letter, shape in zip("ABCD", _SHAPES, strict=True)],
        "answer": "ABCD"[i % 4],
    }


def _mlvu(i: int) -> dict[str, Any]:
    options = "\n".join(f"({letter}) {shape}" for letter, shape in zip("ABCD", _SHAPES, strict=True))
    return {
        "video_name": f"1_plotQA/video{i}.mp4",
        "duration": 6.0,
        "question": f"What is it in scene {i}?\n{options}",
        "candidates": _SHAPES,
        "answer": "ABCD"[i % 4],
        "task_type": ["plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning"][i % 7],
    }


def _longvideobench(i: int) -> dict[str, Any]:
    return {
        "video_id": f"video{i}",
        "question": f"What happens at {i}?",
        "question_wo_referring_query": "What happens?",
        "correct_choice": i % 4,
        "position": [0, 10],
        "topic_category": "KG-Knowledge-Geography",
        "question_category": "S2E",
        "level": "L1-Perception",
        "id": f"video{i}_0",
        "video_path": f"video{i}.mp4",
        "subtitle_path": f"video{i}_en.json",
        "duration_group": [15, 60, 600, 3600][i % 4],
        "starting_timestamp_for_subtitles": 0.0,
        "duration": 6.0,
        "view_count": 1,
        **{f"option{n}": shape for n, shape in enumerate([*_SHAPES, "N/A"])},
    }


def _lvbench(i: int) -> dict[str, Any]:
    options = "\n".join(f"({letter}) {shape}" for letter, shape in zip("ABCD", _SHAPES, strict=True))
    return {
        "key": f"video{i}",
        "video_path": f"video{i}.mp4",
        "uid": str(i),
        "question": f"What is it {i}?\n{options}",
        "answer": "ABCD"[i % 4],
        "question_type": ["entity recognition"],
        "time_reference": "00:00-00:05",
        "type": "cartoon",
    }


STOCK_TASKS = {
    "videomme": StockTask(
        "lmms-eval/Video-MME", "test", "videomme", _videomme, lambda row: f"data/{row['videoID']}.mp4"
    ),
    "mlvu_dev": StockTask("sy1998/MLVU_dev", "test", "mlvu", _mlvu, lambda row: row["video_name"]),
    "longvideobench_val_v": StockTask(
        "longvideobench/LongVideoBench",
        "validation",
        "datasets/longvideobench",
        _longvideobench,
        lambda row: f"videos/{row['video_path']}",
    ),
    "lvbench": StockTask("lmms-eval/LVBench", "train", "lvbench", _lvbench, lambda row: row["video_path"]),
}


def moving_square(seed: int, frames: int = 48, height: int = 84, width: int = 112) -> np.ndarray:
    """A white square crossing a coloured background that changes: ``(frames, height, width, 3)`` uint8."""
    background = np.random.default_rng(seed).integers(0, 255, 3)
    video = np.empty((frames, height, width, 3), np.uint8)
    for t, frame in enumerate(video):
        frame[:] = (background + 7 * t) % 255
        left = 2 * t % (width - 20)
        frame[10:30, left : left + 20] = 255
    return video


def build(hf_home: Path, task: str, rows: int = 4) -> list[Path]:
    """Write questions and videos of `task` under `hf_home`; returns the videos, in the order of their rows."""
    stock = STOCK_TASKS[task]
    table = [stock.row(i) for i in range(rows)]
    source = hf_home / f"{task}.parquet"
    source.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), source)
    namespace, name = stock.repository.split("/")
    prepared = f"{namespace}___{camelcase_to_snakecase(name)}"
    builder = Parquet(
        cache_dir=str(hf_home / "datasets"),
        dataset_name=name,
        config_name="default",
        hash=_NO_REVISION,
        data_files={stock.split: [str(source)]},
    )
    builder.download_and_prepare(output_dir=str(hf_home / "datasets" / prepared / "default" / "0.0.0" / _NO_REVISION))
    videos = []
    for number, row in enumerate(table):
        path = hf_home / stock.folder / stock.video(row)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, moving_square(seed=number), fps=8.0)
        videos.append(path)
    return videos
