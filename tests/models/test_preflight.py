"""Missing videos are found before anything is computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lmms_flexselect.errors import VideoError
from lmms_flexselect.models._preflight import check_videos
from tests.support.evaluate import Question, ask, build


def requests_for(documents, simple):
    """As lmms-eval makes them; documents are lists of paths, or None for one that must not be looked at."""
    made = []
    for number in range(len(documents)):
        arguments: tuple[Any, ...]
        if simple:
            arguments = ("text", {}, lambda paths: paths, number, "task", "test")
        else:
            arguments = (
                "text",
                lambda paths: [{"role": "user", "content": [{"type": "video", "url": p} for p in paths]}],
                {},
                number,
                "task",
                "test",
            )
        made.append(SimpleNamespace(args=arguments))
    return made, {"task": {"test": documents}}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "good.mp4").write_bytes(b"something")
    (tmp_path / "empty.mp4").touch()
    return {name: str(tmp_path / f"{name}.mp4") for name in ("good", "empty", "missing")}


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_missing_and_empty_files_are_named_and_counted(files, simple):
    good, empty, missing = (files[name] for name in ("good", "empty", "missing"))
    check_videos(*requests_for([[good], [good]], simple))
    with pytest.raises(VideoError, match=r"empty\.mp4: the video file is empty$"):
        check_videos(*requests_for([[good], [empty], [empty]], simple))
    with pytest.raises(VideoError, match=r"missing\.mp4: no such video file \(2 of 3 videos are missing or empty\)$"):
        check_videos(*requests_for([[good], [missing, empty]], simple))


def test_a_task_without_videos_is_left_alone():
    looked_at = []

    def visuals(document):
        looked_at.append(document)
        return [object()]

    arguments: list[Any] = [("text", {}, visuals, n, "task", "test") for n in range(3)]
    check_videos([SimpleNamespace(args=a) for a in arguments], {"task": {"test": ["a", "b", "c"]}})
    assert looked_at == ["a"]


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_nothing_is_computed_before_the_check(monkeypatch, random_checkpoint, stock_videos, files, simple):
    model = build("qwen2_5_vl_flexselect", simple, pretrained=random_checkpoint, max_num_frames=16)
    monkeypatch.setattr(type(model._selecting), "generate", lambda *a, **k: pytest.fail("a question was answered"))
    good = str(stock_videos["mlvu_dev"][0])
    with pytest.raises(VideoError, match="missing"):
        ask(model, [Question("What?", (good,)), Question("What?", (files["missing"],))])
