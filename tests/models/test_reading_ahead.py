"""Every class: videos are decoded ahead and once, keys go along, and answers are what they were without all that."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import VideoError
from lmms_flexselect.video.key import video_key
from tests.support.classes import CLASSES
from tests.support.evaluate import Question, ask, build

every_class = pytest.mark.parametrize("name", CLASSES)


@pytest.fixture
def made(checkpoints):
    """Builds a class and notes what it reads, in which threads, and what its family is given."""

    def make(name, **arguments):
        model_name, simple, own = CLASSES[name]
        checkpoint = checkpoints[model_name.removesuffix("_flexselect")]
        model = build(model_name, simple, pretrained=checkpoint, dtype="float32", **{**own, **arguments})
        model.reads, model.given = [], []
        read, prompts = model._frames._read, model._selecting._family.prompts

        def reading(key):
            model.reads.append((key.path, threading.current_thread() is threading.main_thread()))
            return read(key)

        def given(inputs):
            model.given.append(dict(inputs))
            return prompts(inputs)

        model._frames._read, model._selecting._family.prompts = reading, given
        return model

    return make


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


def questions_about(videos, order):
    return [Question(f"What is shown? {'Look well. ' * (n % 3)}{n}", (videos[v],)) for n, v in enumerate(order)]


def pixels_of(given):
    """What the tower would read; None where the store has what it would make of it."""
    pixels = next((given[n] for n in ("pixel_values_videos", "pixel_values", "videos") if n in given), None)
    return torch.cat(pixels) if isinstance(pixels, list) else pixels


@every_class
def test_answers_are_the_same_and_each_video_is_read_once(name, made, videos, tmp_path):
    """In the questions' order; the same pixels, the same tokens kept, and beside them one key a video."""
    order = [0, 1, 0, 2, 1, 3, 0]
    questions = questions_about(videos, order)
    models, answers, kept = {}, {}, {}
    for ahead in (0, 2):
        folder = tmp_path / str(ahead)
        models[ahead] = model = made(name, prefetch_videos=ahead, dump_selection=folder)
        answers[ahead] = ask(model, questions)
        kept[ahead] = {path.name: read_selection(path) for path in sorted(folder.iterdir())}
        assert sorted(path for path, _ in model.reads) == videos[:4]
        assert not any(of_main for _, of_main in model.reads)  # it is to hear Ctrl-C
        assert model._frames._held == {}
        keys = [key for given in model.given for key in given["video_keys"]]
        assert [key.path for key in keys] == [videos[v] for v in sorted(order)]
        assert all(key == video_key(key.path, *key.reading) and key.reading for key in keys)
        assert len(set(keys)) == 4
    for given, other in zip(models[0].given, models[2].given, strict=True):
        ours, theirs = pixels_of(given), pixels_of(other)
        assert torch.equal(ours, theirs) if ours is not None else theirs is None
        assert given["video_keys"] == other["video_keys"]
    assert len(kept[0]) == len(questions)
    for file, (arrays, sample) in kept[0].items():
        others, other = kept[2][file]
        assert sample == other
        assert all(np.array_equal(arrays[n], others[n]) for n in ("kept", "scores", "frame")), file
    assert answers[0] == answers[2] == [ask(models[0], [question])[0] for question in questions]
    assert len(set(answers[0])) > 1


def test_the_key_is_of_the_file_as_it_is(made, videos):
    model = made("qwen2_5_vl")
    stat = os.stat(videos[0])
    for later in (0, 1):
        os.utime(videos[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + later))
        ask(model, questions_about(videos, [0]))
    os.utime(videos[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    first, second = (given["video_keys"][0] for given in model.given)
    assert first != second


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_vid decord", "internvl_hf"])
def test_what_is_read_is_told_from_other_readings_of_the_file(name, made, videos):
    other = {"qwen2_5_vl": {"max_num_frames": 8}, "llava_vid decord": {"max_frames_num": 3}, "internvl_hf": {}}
    other["internvl_hf"] = {"num_frames": 3}
    keys = []
    for arguments in ({}, other[name]):
        model = made(name, **arguments)
        ask(model, questions_about(videos, [0]))
        keys += model.given[-1]["video_keys"]
    assert len(set(keys)) == 2
    assert len({key.path for key in keys}) == 1


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_batches_of_several_videos_are_answered_the_same(made, videos, simple):
    name = "qwen2_5_vl simple" if simple else "qwen2_5_vl"
    questions = questions_about(videos, [0, 1, 0, 2, 1, 3, 0])
    answers = {}
    for size in (1, 2, 3):
        model = made(name, batch_size=size, prefetch_videos=1)
        answers[size] = ask(model, questions)
        assert [len(given["input_ids"]) for given in model.given] == [size] * (7 // size) + [7 % size] * (7 % size > 0)
        assert all(len(given["video_keys"]) == len(given["input_ids"]) for given in model.given)
        assert sorted(path for path, _ in model.reads) == videos[:4]
    assert answers[1] == answers[2] == answers[3]


class Killed(BaseException):
    """What ends a thread."""


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("qwen2_5_vl", Killed),
        ("qwen2_5_vl simple", MemoryError),
        ("llava_vid decord", MemoryError),
        ("llava_vid pyav", Killed),
        ("internvl_hf", Killed),
    ],
)
def test_a_decoder_that_dies_takes_its_samples_down_alone(name, made, videos, error):
    questions = questions_about(videos, [0, 1, 2, 1])

    def dying(model):
        read = model._frames._read

        def reading(key):
            if key.path == videos[1]:
                raise error
            return read(key)

        model._frames._read = reading
        return model

    lenient = made(name, strict="false")
    healthy = ask(lenient, questions)
    assert "" not in healthy
    lenient._selecting.records.clear()
    lenient._selecting._family.store.clear()  # or nothing would have to be read
    assert ask(dying(lenient), questions) == [healthy[0], "", healthy[2], ""]
    lenient.clean()
    unreadable = lenient.flexselect_results["unreadable"]
    assert sorted(listed["doc_id"] for listed in unreadable) == [1, 3]
    assert all(listed["error"].startswith(f"{videos[1]}: reading it was ended by") for listed in unreadable)
    strict = dying(made(name))
    with pytest.raises(VideoError, match=rf"^{videos[1]}: reading it was ended by {error.__name__}$"):
        ask(strict, questions)
    assert strict._frames._held == {}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_vl simple", "internvl_hf"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_video_whose_tokens_are_kept_is_not_decoded_again(name, kept, made, videos):
    model = made(name, **({} if kept else {"store_gpu_gib": 0, "store_cpu_gib": 0}))
    questions = questions_about(videos, [0, 1, 0])
    first = ask(model, questions)
    assert ask(model, questions) == first
    assert sorted(path for path, _ in model.reads) == sorted(videos[:2] * (1 if kept else 2))
    records = [(r.doc_id, r.visual_tokens, r.visual_tokens_kept, r.input_tokens) for r in model._selecting.records]
    assert records[:3] == records[3:]


def test_an_image_beside_a_kept_video_is_read_as_ever(made, videos):
    image = Image.new("RGB", (84, 84), (10, 200, 30))
    alone, beside = questions_about(videos, [0, 0])
    beside = Question(beside.text, (videos[0], image))
    expected = ask(made("qwen2_5_vl", store_gpu_gib=0, store_cpu_gib=0), [alone, beside, alone])
    model = made("qwen2_5_vl")
    assert ask(model, [alone, beside, alone]) == expected
    assert [given.get("pixels_omitted") for given in model.given] == [None, None, [True]]


def test_what_a_sample_waited_is_recorded(made, videos):
    """Not what was read before its turn; the second question about a video waits for nothing."""
    model = made("qwen2_5_vl", prefetch_videos=0)
    ask(model, questions_about(videos, [0, 1, 0, 1]))
    seconds = {record.doc_id: record.video_seconds for record in model._selecting.records}
    assert seconds[2] < seconds[0] / 2
    assert seconds[3] < seconds[1] / 2


def test_likelihoods_of_one_video_read_it_once(made, videos):
    model = made("llava_vid decord")
    model.task_dict["asked"] = {"test": [videos[0], videos[1]]}
    requests: list[Instance] = []
    for number, target in ((0, "A"), (1, "A"), (0, "B. Another"), (1, "C")):
        arguments = ("What is shown?", target, lambda path: [path], number, "asked", "test")
        metadata = {"task": "asked", "doc_id": number, "repeats": 1}
        requests.append(Instance("loglikelihood", arguments, len(requests), metadata))
    answers = [tuple(answer) for answer in model.loglikelihood(requests)]
    assert sorted(path for path, _ in model.reads) == videos[:2]
    assert answers == [tuple(model.loglikelihood([request])[0]) for request in requests]
    assert len(set(answers)) == 4


def test_a_folder_of_frames_is_read_ahead_too(made, videos, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for shade, folder in enumerate(folders):
        folder.mkdir()
        for n in range(8):
            Image.new("RGB", (60, 60), (60 * shade, 20 * n, 40)).save(folder / f"{n}.png")
    model = made("llava_vid decord")
    ask(model, questions_about([*map(str, folders), videos[0]], [0, 1, 0, 2]))
    assert sorted(path for path, _ in model.reads) == sorted([*map(str, folders), videos[0]])
    assert not any(of_main for _, of_main in model.reads)
