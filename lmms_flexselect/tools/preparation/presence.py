"""What of a benchmark is on this machine. Only looks; needs no hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import first_line
from lmms_flexselect.runtime.hf_home import hf_home
from lmms_flexselect.tools.preparation.benchmarks import Benchmark, Questions, Row, find_video

# Beside the files of a benchmark: what each archive held, by name and size, written once it is unpacked as a whole.
RECORD = ".flexselect_unpacked.json"


@dataclass(frozen=True)
class Presence:
    """What is there of the files that one set of questions needs.

    `videos` and `subtitles` count distinct files that the questions name and that are present and whole;
    `videos_needed` and `subtitles_needed` those that they name. `present` has the places of such videos, `absent` those
    of what is lacking.
    """

    benchmark: Benchmark
    questions: Questions
    folder: Path
    found: int
    videos: int
    videos_needed: int
    subtitles: int
    subtitles_needed: int
    absent: tuple[Path, ...]
    present: tuple[Path, ...]
    complaints: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether a run can start."""
        return not self.complaints


def presence(benchmark: Benchmark, home: Path | None = None) -> list[Presence]:
    """What is there of a benchmark, for each of its sets of questions.

    Parameters
    ----------
    benchmark
        One of `BENCHMARKS`.
    home
        HF_HOME; the environment's if none is given.
    """
    home = home or hf_home()
    return [_look(benchmark, questions, home) for questions in benchmark.questions]


def missing(benchmark: Benchmark, home: Path | None = None) -> list[str]:
    """What a benchmark lacks on this machine: a line each, with the place where it is expected; empty if nothing."""
    return [complaint for found in presence(benchmark, home) for complaint in found.complaints]


def question_files(questions: Questions, home: Path) -> list[Path]:
    """The files of a set of questions in the hub's cache; none if they were not downloaded."""
    # Set apart from HF_HOME by these two, as huggingface_hub reads them.
    hub = os.getenv("HF_HUB_CACHE") or os.getenv("HUGGINGFACE_HUB_CACHE")
    folder = (Path(hub).expanduser() if hub else home / "hub") / f"datasets--{questions.repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return []
    return sorted((folder / "snapshots" / commit).glob(questions.pattern))


def read_questions(questions: Questions, path: Path) -> Iterator[Row]:
    """The questions of one downloaded file.

    Raises
    ------
    ValueError, OSError
        If it is no such file.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet  # a tenth of a second

        lines = pyarrow.parquet.read_table(path).to_pylist()
    else:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for line in lines:
        yield from questions.unfold(line) if questions.unfold else [line]


def _look(benchmark: Benchmark, questions: Questions, home: Path) -> Presence:
    folder = home / benchmark.folder
    complaints: list[str] = []
    found = 0
    names: dict[str, set[str]] = {"videos": set(), "subtitles": set()}
    for path in question_files(questions, home):
        try:
            for row in read_questions(questions, path):
                names["videos"].add(questions.video(row))
                if questions.subtitle:
                    names["subtitles"].add(questions.subtitle(row))
                found += 1
        except (ValueError, OSError, KeyError, TypeError) as error:
            complaints.append(f"{path}: cannot be read ({type(error).__name__}: {first_line(error)})")
    if not found and not complaints:
        complaints.append(f"{questions.repository}: its {questions.pattern} is not in the hub's cache under {home}")
    elif found and questions.count is not None and found != questions.count:
        complaints.append(
            f"{questions.repository}: {found} questions instead of {questions.count}: cut off, or another version"
        )
    if found and questions.videos is not None and len(names["videos"]) != questions.videos:
        complaints.append(
            f"{questions.repository}: questions about {len(names['videos'])} videos instead of {questions.videos}"
        )
    sizes = recorded_sizes(folder)
    lacking: dict[str, list[str]] = {}
    for kind, needed in names.items():
        lacking[kind] = [name for name in sorted(needed) if not _whole(folder, name, sizes)]
        if lacking[kind]:
            some = ", ".join(lacking[kind][:8]) + (", …" if len(lacking[kind]) > 8 else "")
            complaints.append(
                f"{folder}: lacks {len(lacking[kind])} of {len(needed)} {kind}, or they are cut off: {some}"
            )
    return Presence(
        benchmark=benchmark,
        questions=questions,
        folder=folder,
        found=found,
        videos=len(names["videos"]) - len(lacking["videos"]),
        videos_needed=len(names["videos"]),
        subtitles=len(names["subtitles"]) - len(lacking["subtitles"]),
        subtitles_needed=len(names["subtitles"]),
        present=tuple(there for name in sorted(names["videos"]) if (there := find_video(folder, name)) is not None),
        absent=tuple(folder / name for absent in lacking.values() for name in absent),
        complaints=tuple(complaints),
    )


def recorded_sizes(folder: Path) -> dict[str, int]:
    """Sizes of the files that were unpacked into a benchmark's folder, by their relative paths."""
    return {name: size for archive in read_record(folder).values() for name, size in archive["files"].items()}


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What was unpacked here: of each archive, its ``bytes``, and its ``files`` and their sizes.

    Empty if nothing was, or by lmms-eval itself. One that does not parse is none: archives are then looked at again.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        return {name: {"bytes": entry["bytes"], "files": dict(entry["files"])} for name, entry in record.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _whole(folder: Path, name: str, sizes: dict[str, int]) -> bool:
    path = find_video(folder, name)
    if path is None:
        return False
    size = path.stat().st_size
    return size > 0 and size == sizes.get(path.relative_to(folder).as_posix(), size)
