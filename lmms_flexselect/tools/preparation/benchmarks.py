"""The four benchmarks: repositories, counts, and where lmms-eval looks for their files.

Importing this loads nothing heavy. Names and folders are those of lmms-eval 0.7.3's task files; no hub could be reached
while this was written, so the number behind each count says who counted, and sizes are rounded from the repositories'
file lists as search engines had stored them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Questions:
    """One file of questions, the tasks that ask them, and the files that they are about.

    Paths of videos and subtitles are relative to the benchmark's folder.
    """

    tasks: tuple[str, ...]
    repository: str
    pattern: str  # of its files in the repository, which are parquet or JSON lines
    split: str
    count: int | None  # None where nobody could be found who says
    videos: int | None
    source: str  # of the two numbers
    video: Callable[[Row], str]
    subtitle: Callable[[Row], str] | None = None
    unfold: Callable[[Row], list[Row]] | None = None  # where a line of the file holds several questions


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's data as lmms-eval wants them: archives of a hub repository, unpacked into a folder of HF_HOME."""

    name: str
    title: str
    repository: str
    gated: bool
    folder: str  # relative to HF_HOME
    archives: tuple[str, ...]  # patterns; the parts of one split archive share what comes before ".part"
    gigabytes: float  # of the archives, to download; unpacked they take as much again
    questions: tuple[Questions, ...]
    note: str = ""  # what no command can do for the user


def lvbench_questions(line: Row) -> list[Row]:
    """The questions of one line of LVBench's own file, which describes a video and lists its questions under ``qa``.

    Raises
    ------
    ValueError
        If it is another file.
    """
    if not isinstance(line, Mapping) or not isinstance(line.get("qa"), list):
        raise ValueError('a line is not a video with its questions under "qa"')
    of_video = {name: value for name, value in line.items() if name != "qa"}
    return [{**of_video, **question} for question in line["qa"]]


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="videomme",
            title="Video-MME",
            repository="lmms-eval/Video-MME",
            gated=False,
            folder="videomme",
            archives=("videos_chunked_*.zip", "subtitle.zip"),
            gigabytes=101,
            questions=(
                Questions(
                    tasks=("videomme", "flexselect_paper_videomme"),
                    repository="lmms-eval/Video-MME",
                    pattern="videomme/*.parquet",
                    split="test",
                    count=2700,
                    videos=900,
                    source="Video-MME, arXiv 2405.21075",
                    video=lambda row: f"data/{row['videoID']}.mp4",
                ),
            ),
        ),
        Benchmark(
            name="mlvu",
            title="MLVU (dev)",
            repository="sy1998/MLVU_dev",
            gated=False,
            folder="mlvu",
            archives=("*.zip",),
            gigabytes=285,
            questions=(
                Questions(
                    tasks=("mlvu_dev", "flexselect_paper_mlvu"),
                    repository="sy1998/MLVU_dev",
                    pattern="mlvu/*.parquet",
                    split="test",
                    count=2174,
                    videos=None,
                    source="the multiple-choice half of MLVU's dev set, as other lmms-eval users count it",
                    video=lambda row: row["video_name"],
                ),
            ),
        ),
        Benchmark(
            name="longvideobench",
            title="LongVideoBench",
            repository="longvideobench/LongVideoBench",
            gated=True,
            folder="datasets/longvideobench",
            archives=("videos.tar.part.*", "subtitles.tar"),
            gigabytes=162,
            questions=(
                Questions(
                    tasks=(
                        "longvideobench_val_v",
                        "flexselect_paper_longvideobench",
                        "flexselect_paper_longvideobench_sub",
                    ),
                    repository="longvideobench/LongVideoBench",
                    pattern="validation-*.parquet",
                    split="validation",
                    count=1337,
                    videos=None,
                    source="LongVideoBench, arXiv 2407.15754",
                    video=lambda row: f"videos/{row['video_path']}",
                    subtitle=lambda row: f"subtitles/{row['subtitle_path']}",
                ),
            ),
        ),
        Benchmark(
            name="lvbench",
            title="LVBench",
            repository="lmms-eval/LVBench",
            gated=False,
            folder="lvbench",
            archives=("video_chunks/*.zip",),
            gigabytes=62,
            questions=(
                Questions(
                    tasks=("lvbench",),
                    repository="lmms-eval/LVBench",
                    pattern="data/*.parquet",
                    split="train",
                    count=None,
                    videos=None,
                    source="",
                    video=lambda row: row["video_path"],
                ),
                Questions(
                    tasks=("flexselect_paper_lvbench",),
                    repository="zai-org/LVBench",
                    pattern="video_info.meta.jsonl",
                    split="test",
                    count=1549,
                    videos=103,
                    source="LVBench, arXiv 2406.08035",
                    video=lambda row: f"{row['key']}.mp4",
                    unfold=lvbench_questions,
                ),
            ),
            note=(
                "LVBench's authors publish YouTube ids and no videos; the archives are lmms-eval's copies. A video "
                "that they lack has to come from elsewhere (yt-dlp, while YouTube has it): save it as <id>.mp4"
            ),
        ),
    )
}


def find_video(folder: Path, name: str) -> Path | None:
    """The file of a video, or None.

    It is looked for where `name` says, with the suffixes that lmms-eval's Video-MME tries too, and then in `folder`'s
    own folders by its last part: LVBench's own file has ids and no paths, so it does not say how archives are laid out.
    """
    wanted = folder / name
    for path in (wanted, wanted.with_suffix(".MP4"), wanted.with_suffix(".mkv")):
        if path.is_file():
            return path
    if PurePosixPath(name).name != name:
        return None
    return next((path for path in sorted(folder.glob(f"*/{_escaped(name)}")) if path.is_file()), None)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
