"""Where needles are put, and what a folder of them must hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.needle.videos import NeedleVideo, read_video
from lmms_flexselect.tools.analysis.haystacks import Haystack, ImageNeedles, NeedleVideos
from lmms_flexselect.tools.analysis.image_needles import read_needles
from tests.support.questions import Question, family, inputs_of

COLOURS = {"sunset": (250, 10, 10), "lake": (10, 10, 250)}


def source_in(folders, units=8, place="insert", seed=0):
    return ImageNeedles(str(folders / "videos"), str(folders / "needles"), units, place, seed)


@pytest.mark.parametrize("per_unit", [1, 2])
@pytest.mark.parametrize("place", ["insert", "replace"])
def test_a_picture_between_or_over_frames(folders, place, per_unit):
    source = source_in(folders, place=place)
    samples = source.samples(6)
    assert len({sample.unit for sample in samples}) > 1
    for sample in samples:
        shown = source.read(sample, per_unit)
        assert shown.shape == (8 * per_unit, 56, 56, 3)
        name = next(name for name in COLOURS if name in sample.question)
        own = slice(sample.unit * per_unit, (sample.unit + 1) * per_unit)
        assert (shown[own] == torch.tensor(COLOURS[name])).all()
        count = (7 if place == "insert" else 8) * per_unit
        frames = read_video(folders / "videos" / sample.video)[np.linspace(0, 19, count).round().astype(int)]
        rest = np.delete(shown.numpy(), own, axis=0)
        untouched = frames if place == "insert" else np.delete(frames, own, axis=0)
        assert np.abs(rest.astype(int) - untouched).max() <= 2  # another decoder's rounding


def test_every_needle_in_every_video_and_the_same_again(folders):
    source = source_in(folders)
    assert source.count == 6
    samples = source.samples(100)
    assert sorted({sample.video for sample in samples}) == ["a.mp4", "b.mp4", "more/a.mp4"]
    assert len({sample.id for sample in samples}) == 6
    assert source_in(folders).samples(6) == samples
    assert source.samples(3) == samples[:3]
    assert source_in(folders, seed=1).samples(6) != samples


def test_our_own_videos(hf_home):
    source = NeedleVideos(8, 0)
    samples = source.samples(7)
    assert [sample.video for sample in samples] == [samples[0].video] * 6 + [samples[6].video]
    frames = source.read(samples[0], 2)
    drawn = NeedleVideo.draw(int(samples[0].video.split("_")[-1].removesuffix(".mp4")), 8)
    assert frames.shape == (16, 56, 56, 3)
    assert np.abs(frames.numpy().astype(int) - drawn.frames()).mean() < 8  # the codec's
    assert torch.equal(source.read(samples[0], 1), frames[::2])
    needle = drawn.needles[0]
    assert (samples[0].unit, samples[0].quadrant) == (needle.unit, needle.quadrant)
    assert needle.colour in samples[0].question


@pytest.mark.parametrize(
    ("quadrant", "places"),
    [(0, [0]), (1, [1]), (2, [3]), (3, [4]), (None, [0, 1, 2, 3, 4, 5])],
)
def test_the_tokens_of_a_quarter_of_a_frame(quadrant, places):
    """Of two rows and three columns; quarters are counted in rows, and the middle column's half is left out."""
    own = family("qwen2_5_vl")
    (prompt,) = own.prompts(inputs_of("qwen2_5_vl", Question((0,), 0)))
    assert prompt.grids == [(10, 2, 3)]
    of_frame = (prompt.frame == 4).nonzero().squeeze(-1)
    needle = Haystack("id", "video", "Which?", 4, quadrant).tokens(own, prompt)
    assert needle.nonzero().squeeze(-1).tolist() == of_frame[places].tolist()


def one(**words):
    return json.dumps([{"image": "lake.png", "question": "Which lake?", **words}])


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("needles.json", "{", r"needles\.json: is not JSON \(Expecting property name"),
        ("needles.jsonl", '{"image": "lake.png", "question": "Q?"}\n{', r"needles\.jsonl: is not JSON"),
        ("needles.json", "{}", r"needles\.json: must hold a list of needles, each with image, question and answer$"),
        ("needles.json", "[]", r"needles\.json: must hold a list of needles"),
        ("needles.json", "[1]", r"needles\.json: needle 1 is no object with image, question and answer$"),
        ("needles.json", one(question=" "), r"needles\.json: needle 1 has no question$"),
        ("needles.json", one(image=7), r"needles\.json: needle 1 has no image$"),
        ("needles.json", one(image="sea.png"), r"needles\.json: needle 1: \S*sea\.png: no such image$"),
        ("needles.json", one(image="needles.json"), r"needle 1: \S*needles\.json: not a readable image"),
        ("other.json", one(), r"^needles=\S*: the folder has no needles\.json or needles\.jsonl$"),
    ],
)
def test_a_wrong_needles_folder_is_told_of(folders, tmp_path, file, text, complaint):
    (tmp_path / "lake.png").write_bytes((folders / "needles" / "lake.png").read_bytes())
    (tmp_path / file).write_text(text)
    with pytest.raises(FlexSelectError, match=complaint) as caught:
        read_needles(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_one_needle_a_line(folders, tmp_path):
    (tmp_path / "lake.png").write_bytes((folders / "needles" / "lake.png").read_bytes())
    (tmp_path / "needles.jsonl").write_text('{"image": "lake.png", "question": "Which lake? ", "answer": "B"}\n\n')
    (needle,) = read_needles(str(tmp_path))
    assert (needle.question, needle.answer) == ("Which lake?", "B")
    assert read_needles(str(tmp_path / "needles.jsonl")) == [needle]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"videos": "nowhere"}, r"^videos=nowhere: no such folder$"),
        ({"videos": "needles"}, r"^videos=\S*needles: has no video \(\.avi, "),
        ({"needles": "nowhere"}, r"^needles=nowhere: cannot be read \(No such file or directory\)$"),
        ({"units": 1}, r"^frames=1: give at least 2, one of which is the needle's$"),
        ({"place": "beside"}, r"^place=beside: must be one of insert, replace$"),
    ],
)
def test_what_cannot_be_a_haystack(folders, change, complaint):
    words: dict[str, Any] = {
        "videos": str(folders / "videos"),
        "needles": str(folders / "needles"),
        "units": 8,
        "place": "insert",
    }
    words |= {name: str(folders / "needles") if value == "needles" else value for name, value in change.items()}
    with pytest.raises(FlexSelectError, match=complaint):
        ImageNeedles(**words, seed=0)


def test_a_video_that_is_too_short_is_found_before_the_first_sample(folders):
    source = source_in(folders, units=22)
    with pytest.raises(FlexSelectError, match=r"\.mp4: has 20 frames; 21 are asked for, so give fewer --frames$"):
        source.check(source.samples(6), 1)
    source_in(folders, units=21).check(source.samples(6), 1)


def test_too_few_frames_for_our_own_needles():
    with pytest.raises(FlexSelectError, match=r"^frames=5: a needle video hides 6 needles, so give at least 6$"):
        NeedleVideos(5, 0)
