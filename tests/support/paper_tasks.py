"""What the paper's tasks need beside the stock tasks' stand-ins: LVBench's own file, LongVideoBench's subtitles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.stock_tasks import STOCK_TASKS

COMMIT = "1" * 40


def subtitles(number: int) -> list[dict[str, Any]]:
    """In the two forms that the data set has."""
    if number % 2:
        return [{"start": "00:00:01.000", "end": "00:00:02.500", "line": f"spoken {number}"}]
    return [{"timestamp": [1.0, 2.5], "text": f"spoken {number}"}, {"timestamp": [4.9, None], "text": "end"}]


def cache_file(hf_home: Path, repository: str, name: str, content: bytes) -> Path:
    """Put a file where huggingface_hub's cache has it; returns its path."""
    folder = hf_home / "hub" / f"datasets--{repository.replace('/', '--')}"
    path = folder / "snapshots" / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return path


def lvbench_lines(videos: int = 2, questions: int = 2) -> list[dict[str, Any]]:
    """LVBench's own file: a line a video, its questions under ``qa``."""
    lines = []
    for v in range(videos):
        rows = [STOCK_TASKS["lvbench"].row(v * questions + q) for q in range(questions)]
        names = ("uid", "question", "answer", "question_type", "time_reference")
        lines.append(
            {
                "key": f"video{v}",
                "type": "cartoon",
                "video_info": {"duration_minutes": 0.1, "fps": 8.0, "resolution": {"width": 112, "height": 84}},
                "qa": [{name: row[name] for name in names} for row in rows],
            }
        )
    return lines


def build(hf_home: Path) -> None:
    """Complete what `stock_tasks.build` wrote under `hf_home`."""
    lines = "".join(json.dumps(line) + "\n" for line in lvbench_lines())
    cache_file(hf_home, "zai-org/LVBench", "video_info.meta.jsonl", lines.encode())
    folder = hf_home / STOCK_TASKS["longvideobench_val_v"].folder / "subtitles"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        row = STOCK_TASKS["longvideobench_val_v"].row(number)
        (folder / row["subtitle_path"]).write_text(json.dumps(subtitles(number)))
