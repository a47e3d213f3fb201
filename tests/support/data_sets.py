"""The four benchmarks' repositories as folders: all of their questions, and videos of a few bytes in archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.stock_tasks import STOCK_TASKS


def content(name: str) -> bytes:
    """What stands in for a file: a few hundred bytes that do not repeat from file to file."""
    return f"{name} ".encode() * 20


def zipped(path: Path, names: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content(name))


def tarred(names: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            archive.addfile(info, io.BytesIO(content(name)))
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def card(folder: Path, pattern: str, split: str) -> None:
    """The part of a README that says which files are data."""
    files = f"  data_files:\n  - split: {split}\n    path: {pattern}\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n{files}---\n")


def rows(task: str, count: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    row = STOCK_TASKS[task].row
    return [{**row(n), **{name: value(n) for name, value in columns.items()}} for n in range(count)]


def videomme(root: Path) -> None:
    """900 videos of three questions, in two archives."""
    folder = root / "lmms-eval" / "Video-MME"
    parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows("videomme", 2700))
    card(folder, "videomme/test-*", "test")
    zipped(folder / "videos_chunked_01.zip", [f"data/video{n}.mp4" for n in range(450)])
    zipped(folder / "videos_chunked_02.zip", [f"data/video{n}.mp4" for n in range(450, 900)])
    zipped(folder / "subtitle.zip", [f"subtitle/video{n}.srt" for n in range(9)])


def mlvu(root: Path) -> None:
    folder = root / "sy1998" / "MLVU_dev"
    parquet(
        folder / "mlvu" / "test-00000-of-00001.parquet",
        rows("mlvu_dev", 2174, video_name=lambda n: f"{n % 7}_kind/{n // 2}.mp4"),
    )
    card(folder, "mlvu/test-*", "test")
    names = sorted({f"{n % 7}_kind/{n // 2}.mp4" for n in range(2174)})
    for part in range(2):
        zipped(folder / f"video_part_{part + 1}.zip", names[part::2])


def longvideobench(root: Path) -> None:
    """One archive of videos in three parts, cut anywhere, and one of subtitles."""
    folder = root / "longvideobench" / "LongVideoBench"
    parquet(folder / "validation-00000-of-00001.parquet", rows("longvideobench_val_v", 1337))
    card(folder, "validation-*", "validation")
    videos = tarred(f"videos/video{n}.mp4" for n in range(1337))
    third = len(videos) // 3 + 1
    for number, letters in enumerate(("aa", "ab", "ac")):
        (folder / f"videos.tar.part.{letters}").write_bytes(videos[number * third : (number + 1) * third])
    (folder / "subtitles.tar").write_bytes(tarred(f"subtitles/video{n}_en.json" for n in range(1337)))


def lvbench(root: Path, lacks: int = 0) -> None:
    """103 videos with 1,549 questions; the archives lack the last so many videos."""
    of_video = [(n * 103 // 1549, n) for n in range(1549)]
    folder = root / "lmms-eval" / "LVBench"
    parquet(
        folder / "data" / "train-00000-of-00001.parquet",
        [
            {**STOCK_TASKS["lvbench"].row(n), "key": f"id{v}", "video_path": f"id{v}.mp4"}
            for v, n in of_video
            if v < 103 - lacks
        ],
    )
    card(folder, "data/train-*", "train")
    zipped(folder / "video_chunks" / "videos_chunk_001.zip", [f"id{v}.mp4" for v in range(103 - lacks)])
    own = root / "zai-org" / "LVBench"
    own.mkdir(parents=True)
    lines = [
        {
            "key": f"id{v}",
            "type": "tv",
            "qa": [{"uid": str(n), "question": "?", "answer": "A"} for w, n in of_video if w == v],
        }
        for v in range(103)
    ]
    (own / "video_info.meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
