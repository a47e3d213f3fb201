"""What is counted, and what is said of what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from lmms_flexselect.runtime.hf_home import hf_home
from lmms_flexselect.tools.preparation.benchmarks import BENCHMARKS, find_video, lvbench_questions
from lmms_flexselect.tools.preparation.presence import missing, presence, question_files
from lmms_flexselect.tools.preparation.unpack import record
from tests.support.data_sets import parquet, rows
from tests.support.paper_tasks import cache_file, lvbench_lines

VIDEOMME = BENCHMARKS["videomme"]


def small(benchmark, count, videos):
    """The benchmark, but of so few questions."""
    return replace(benchmark, questions=(replace(benchmark.questions[-1], count=count, videos=videos),))


@pytest.fixture(autouse=True)
def _plain_cache(monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)


@pytest.fixture
def home(tmp_path):
    """Six questions about two videos, of which the first is there."""
    parquet(tmp_path / "rows.parquet", rows("videomme", 6))
    cache_file(tmp_path, VIDEOMME.repository, "videomme/test-0.parquet", (tmp_path / "rows.parquet").read_bytes())
    video = tmp_path / "videomme" / "data" / "video0.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"1234")
    return tmp_path


def test_nothing_there(tmp_path):
    for benchmark in BENCHMARKS.values():
        lines = missing(benchmark, tmp_path)
        assert len(lines) == len(benchmark.questions)
        for line, questions in zip(lines, benchmark.questions, strict=True):
            assert line == f"{questions.repository}: its {questions.pattern} is not in the hub's cache under {tmp_path}"
        for found in presence(benchmark, tmp_path):
            assert (found.found, found.videos, found.videos_needed, found.complete) == (0, 0, 0, False)


def test_a_video_is_missing(home):
    (found,) = presence(small(VIDEOMME, 6, 2), home)
    assert (found.found, found.videos, found.videos_needed) == (6, 1, 2)
    assert found.absent == (home / "videomme" / "data" / "video1.mp4",)
    assert found.complaints == (f"{home}/videomme: lacks 1 of 2 videos, or they are cut off: data/video1.mp4",)


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".mkv"])
def test_all_there(home, suffix):
    (home / "videomme" / "data" / f"video1{suffix}").write_bytes(b"1")
    (found,) = presence(small(VIDEOMME, 6, 2), home)
    assert found.complete
    assert found.absent == ()


def test_empty_and_cut_off_videos_are_missing(home):
    folder = home / "videomme"
    (folder / "data" / "video1.mp4").touch()
    record(folder, "videos_chunked_01.zip", 99, {"data/video0.mp4": 5})
    (found,) = presence(small(VIDEOMME, 6, 2), home)
    assert (found.videos, len(found.absent)) == (0, 2)


@pytest.mark.parametrize(
    ("count", "videos", "says"), [(7, 2, "6 questions instead of 7"), (6, 3, "2 videos instead of 3")]
)
def test_other_counts_than_published(home, count, videos, says):
    (home / "videomme" / "data" / "video1.mp4").write_bytes(b"1")
    (line,) = missing(small(VIDEOMME, count, videos), home)
    assert says in line


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", b"<html>"])
def test_questions_that_cannot_be_read(home, content):
    (path,) = question_files(VIDEOMME.questions[0], home)
    path.write_bytes(content)
    (line,) = missing(VIDEOMME, home)
    assert line.startswith(f"{path}: cannot be read (")
    assert "\n" not in line


@pytest.mark.parametrize("text", ["[1]\n", "{\n", '{"key": "a"}\n', '{"key": "a", "qa": 3}\n'])
def test_lvbench_file_of_another_form(tmp_path, text):
    cache_file(tmp_path, "zai-org/LVBench", "video_info.meta.jsonl", text.encode())
    line = missing(BENCHMARKS["lvbench"], tmp_path)[-1]
    assert "video_info.meta.jsonl: cannot be read (" in line


def test_lvbench_unfolds(tmp_path):
    lines = lvbench_lines(videos=2, questions=3)
    cache_file(tmp_path, "zai-org/LVBench", "video_info.meta.jsonl", "\n".join(map(json.dumps, lines)).encode())
    (tmp_path / "lvbench" / "any").mkdir(parents=True)
    (tmp_path / "lvbench" / "any" / "video1.mp4").write_bytes(b"1")
    (found,) = presence(small(BENCHMARKS["lvbench"], 6, 2), tmp_path)
    assert (found.found, found.videos, found.videos_needed) == (6, 1, 2)
    assert [row["uid"] for row in lvbench_questions(lines[0])] == ["0", "1", "2"]
    assert {row["key"] for row in lvbench_questions(lines[1])} == {"video1"}


def test_questions_of_other_columns(tmp_path):
    parquet(tmp_path / "rows.parquet", [{"video": "x"}])
    cache_file(tmp_path, VIDEOMME.repository, "videomme/test-0.parquet", (tmp_path / "rows.parquet").read_bytes())
    (line,) = missing(VIDEOMME, tmp_path)
    assert line.endswith("cannot be read (KeyError: 'videoID')")


def test_subtitles_are_counted(tmp_path):
    benchmark = BENCHMARKS["longvideobench"]
    parquet(tmp_path / "rows.parquet", rows("longvideobench_val_v", 3))
    cache_file(tmp_path, benchmark.repository, "validation-0.parquet", (tmp_path / "rows.parquet").read_bytes())
    folder = tmp_path / benchmark.folder
    for name in ("videos/video0.mp4", "videos/video1.mp4", "videos/video2.mp4", "subtitles/video1_en.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    (found,) = presence(small(benchmark, 3, None), tmp_path)
    assert (found.videos, found.subtitles, found.subtitles_needed) == (3, 1, 3)
    assert found.complaints == (
        f"{folder}: lacks 2 of 3 subtitles, or they are cut off: subtitles/video0_en.json, subtitles/video2_en.json",
    )


def test_many_missing_are_not_all_named(tmp_path):
    parquet(tmp_path / "rows.parquet", rows("videomme", 60))
    cache_file(tmp_path, VIDEOMME.repository, "videomme/test-0.parquet", (tmp_path / "rows.parquet").read_bytes())
    (line,) = missing(small(VIDEOMME, 60, 20), tmp_path)
    assert "lacks 20 of 20 videos" in line
    assert line.count("data/") == 8
    assert line.endswith(", …")


def test_names_that_look_like_patterns(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a[1]*.mp4").touch()
    assert find_video(tmp_path, "a[1]*.mp4") == tmp_path / "below" / "a[1]*.mp4"
    assert find_video(tmp_path, "a1.mp4") is None


def test_the_cache_elsewhere(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    assert len(question_files(VIDEOMME.questions[0], home / "elsewhere")) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data/hf", "/data/hf"),
        ("~/hf", "HOME/hf"),
        ("$HOME/hf", "HOME/hf"),
        ("", "HOME/.cache/huggingface"),
        (None, "HOME/.cache/huggingface"),
    ],
)
def test_hf_home(monkeypatch, value, expected):
    monkeypatch.setenv("HOME", "/home/me")
    if value is None:
        monkeypatch.delenv("HF_HOME")
    else:
        monkeypatch.setenv("HF_HOME", value)
    assert str(hf_home()) == expected.replace("HOME", "/home/me")


def test_looking_loads_nothing_heavy():
    code = (
        "import sys; import lmms_flexselect.tools.preparation.command;"
        "print({'torch', 'transformers', 'lmms_eval', 'datasets', 'huggingface_hub'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
