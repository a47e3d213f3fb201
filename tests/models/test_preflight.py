"""Missing videos are found before anything is computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lmms_eval.api.instance import Instance

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.families.llava_video.visuals import check_frames
from lmms_flexselect.models.requests import check_videos, request_videos, take_apart
from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.video.reading import check_video
from tests.support.changing_frames import changing_frames
from tests.support.evaluate import Question, ask, build


def requests_for(documents, simple):
    """As lmms-eval makes them for generating; documents are lists of paths."""
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


def likelihood_requests_for(documents, target):
    """As lmms-eval makes them of a `loglikelihood` or a `multiple_choice` task."""
    arguments = [("text", target, lambda paths: paths, number, "task", "test") for number in range(len(documents))]
    return [SimpleNamespace(args=of_one) for of_one in arguments], {"task": {"test": documents}}


def check(videos, of_one=check_video):
    return check_videos(videos, of_one, strict=True)


def of_folders(path):
    return check_frames(path, 60.0)


@pytest.fixture
def files(tmp_path):
    write_video(tmp_path / "good.mp4", changing_frames(4), 4.0)
    (tmp_path / "empty.mp4").touch()
    return {name: str(tmp_path / f"{name}.mp4") for name in ("good", "empty", "missing")}


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_missing_and_empty_files_are_named_and_counted(files, simple):
    good, empty, missing = (files[name] for name in ("good", "empty", "missing"))
    check(request_videos(*requests_for([[good], [good]], simple)))
    with pytest.raises(VideoError, match=r"empty\.mp4: the video file is empty$"):
        check(request_videos(*requests_for([[good], [empty], [empty]], simple)))
    with pytest.raises(VideoError, match=r"missing\.mp4: no such video file \(2 of 3 videos cannot be read\)$"):
        check(request_videos(*requests_for([[good], [missing, empty]], simple)))


@pytest.mark.parametrize("target", [" A", lambda document: pytest.fail("it was taken for the video")])
def test_requests_for_likelihoods_are_looked_at_too(files, target):
    """There both what is expected and what is looked at may be given as functions of the document."""
    good, missing = files["good"], files["missing"]
    check(request_videos(*likelihood_requests_for([[good], [good]], target)))
    with pytest.raises(VideoError, match=r"missing\.mp4: no such video file$"):
        check(request_videos(*likelihood_requests_for([[good], [missing]], target)))


def look(documents, of_one):
    check(request_videos(*requests_for(documents, True)), of_one)


def test_a_folder_may_be_a_video_of_a_family_that_reads_frames(tmp_path, files):
    folder, empty = tmp_path / "frames", tmp_path / "none"
    folder.mkdir()
    empty.mkdir()
    (folder / "0.png").touch()
    documents = [[files["good"]], [str(folder)]]
    with pytest.raises(VideoError, match=r"frames: is a folder, not a video file$"):
        look(documents, check_video)
    look(documents, of_folders)
    with pytest.raises(VideoError, match=r"none: the folder of frames is empty$"):
        look([*documents, [str(empty)]], of_folders)
    with pytest.raises(VideoError, match=r"missing\.mp4: no such video file \(2 of 4 videos cannot be read\)$"):
        look([*documents, [files["missing"], files["empty"], files["good"]]], of_folders)


def test_a_file_that_several_questions_are_about_is_looked_at_once(files):
    looked_at: list[str] = []

    def check_one(path):
        looked_at.append(path)
        return 1, 1.0

    look([[files["good"]]] * 5, check_one)
    assert looked_at == [files["good"]]


def test_every_document_is_looked_at(files):
    """Those of one task may show an image, a video, both, or nothing."""
    image = object()
    documents = [[image], [files["good"]], [], [image, files["good"]], None, [image]]
    given = requests_for(documents, True)
    assert request_videos(*given) == [(), (files["good"],), (), (files["good"],), (), ()]
    with pytest.raises(VideoError, match=r"missing\.mp4: no such video file$"):
        look([[image], [files["missing"]]], check_video)


def test_without_strict_a_bad_video_is_counted_for_nothing(files):
    paths = [(files["good"],), (files["missing"],)]
    assert check_videos(paths, check_video, strict=False) == {files["good"]: (4, 4.0), files["missing"]: None}


def test_of_several_rounds_the_first_is_looked_at(files):
    def next_round(document, previous_output=None, round_idx=None, previous_round_info=None):
        pytest.fail("it was taken for the video")

    arguments: tuple[Any, ...] = ("text", {}, lambda paths: paths, next_round, 0, "task", "test")
    given = [SimpleNamespace(args=arguments)], {"task": {"test": [[files["good"]]]}}
    assert request_videos(*given) == [(files["good"],)]


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_nothing_is_computed_before_the_check(monkeypatch, random_checkpoint, stock_videos, files, simple):
    model = build("qwen2_5_vl_flexselect", simple, pretrained=random_checkpoint, max_num_frames=16)
    monkeypatch.setattr(type(model._selecting), "generate", lambda *a, **k: pytest.fail("a question was answered"))
    good = str(stock_videos["mlvu_dev"][0])
    with pytest.raises(VideoError, match="missing"):
        ask(model, [Question("What?", (good,)), Question("What?", (files["missing"],))])


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_nothing_is_computed_by_llava_before_the_check(monkeypatch, llava_checkpoint, stock_videos, files, kind):
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, max_frames_num=16)
    for name in ("generate", "__call__"):
        monkeypatch.setattr(type(model._selecting), name, lambda *a, **k: pytest.fail("a question was answered"))
    model.task_dict["asked"] = {"test": [[str(stock_videos["mlvu_dev"][0])], [files["missing"]]]}
    second = {} if kind == "generate_until" else "A"
    arguments: list[Any] = [("What?", second, lambda paths: paths, number, "asked", "test") for number in (0, 1)]
    given = [Instance(kind, a, 0, {"task": "asked", "doc_id": n, "repeats": 1}) for n, a in enumerate(arguments)]
    with pytest.raises(VideoError, match="missing"):
        getattr(model, kind)(given)


def request(*arguments, **said):
    return SimpleNamespace(args=arguments, **said)


@pytest.mark.parametrize(
    "arguments",
    [
        ("text", {}, len, 3, "task", "test"),
        ("text", {}, len, max, 3, "task", "test"),
        ("text", len, {}, 3, "task", "test"),
        ("text", " A", len, 3, "task", "test"),
        ("text", max, len, 3, "task", "test"),
    ],
    ids=["simple", "rounds", "chat", "likelihood", "likelihood of the document's text"],
)
def test_the_parts_of_a_request(arguments):
    parts = take_apart(request(*arguments, task_name="task", doc_id=3))
    assert (parts.text, parts.document) == ("text", ("task", "test", 3))
    assert parts.settings == next((a for a in arguments if isinstance(a, dict)), None)
    assert (parts.messages or parts.visuals) is len
    assert (parts.target or parts.next_round or max) in (max, " A")
    assert parts.arguments == arguments
    for said in ({"task_name": "other"}, {"doc_id": 4}):
        with pytest.raises(FlexSelectError, match=r"^a request of task \w+, document \d, asks about task, document 3$"):
            take_apart(request(*arguments, **said))


@pytest.mark.parametrize(
    "arguments",
    [
        ("", " A"),
        (3, {}, len, 3, "task", "test"),
        ("text", {}, len, 3, "task"),
        ("text", {}, len, 3, "task", "test", "more"),
        ("text", {}, {}, 3, "task", "test"),
        ("text", len, " A", 3, "task", "test"),
        ("text", {}, len, "task", "test", 3),
    ],
)
def test_arguments_that_lmms_eval_does_not_give(arguments):
    with pytest.raises(
        FlexSelectError, match=r"^a request of lmms-eval's has arguments \(.*\), which this package cannot"
    ):
        take_apart(request(*arguments))
