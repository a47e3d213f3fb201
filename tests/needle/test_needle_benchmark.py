import hashlib
import json
from pathlib import Path

import decord
import pytest

import lmms_flexselect.needle.benchmark as benchmark
from lmms_flexselect.needle.naming import Naming, by_chart, by_colour

TASKS = Path(__file__).parents[2] / "tasks" / "needle"

# The rows that published numbers were measured on. A new hash makes new numbers: raise GENERATOR_VERSION with it.
ROWS_SHA256 = "e614409030d831302789076c95aa86bee781bcc220dbc1fd9a182cdc79ca751f"


def test_rows_are_stable() -> None:
    rows = [row for units in benchmark.LENGTHS for row in benchmark.documents(units)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == ROWS_SHA256


@pytest.mark.parametrize(
    ("file", "units", "naming"),
    [
        *((f"needle_{units}", units, by_colour) for units in benchmark.LENGTHS),
        *((f"needle_chart_{units}", units, by_chart) for units in benchmark.CHART_LENGTHS),
    ],
)
def test_the_task_reads_the_rows(file: str, units: int, naming: Naming) -> None:
    lines = (TASKS / f"{file}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == benchmark.documents(units, naming=naming)
    assert len(lines) == 204


def test_six_questions_share_a_video() -> None:
    rows = benchmark.documents(16, videos=3)
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row["video"], set()).add(row["colour"])
    assert [len(colours) for colours in asked.values()] == [6, 6, 6]
    assert len({row["id"] for row in rows}) == len(rows)
    others = benchmark.documents(16, videos=3, seed=1)
    assert not asked.keys() & {row["video"] for row in others}


def test_a_video_is_written_once_into_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    row = benchmark.documents(16, videos=1)[0]
    path = benchmark.video_path(row)
    assert path == tmp_path / "home" / "flexselect_needle" / row["video"]
    assert len(decord.VideoReader(str(path))) == 32
    written = path.stat().st_mtime_ns
    assert benchmark.video_path(row) == path
    assert path.stat().st_mtime_ns == written


def test_the_cache_is_hugging_faces_without_hf_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert benchmark.cache_folder() == Path("/somewhere/.cache/huggingface/flexselect_needle")


@pytest.mark.parametrize(
    ("answer", "right"),
    [("ring", True), (" Ring.\n", True), ("RING it is", True), ("", False), ("a ring", False), ("rings", False)],
)
def test_the_first_word_answers(answer: str, right: bool) -> None:
    assert benchmark.answers_shape(answer, "ring") is right
