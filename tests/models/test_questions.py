"""Questions and videos that a model cannot be shown are said in one line, early where it can be."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from lmms_flexselect.errors import FlexSelectError, VideoError
from tests.support.evaluate import Question, ask, build

PLACEHOLDERS = [
    ("qwen2_5_vl", "<|video_pad|>"),
    ("qwen2_5_vl", "<|image_pad|>"),
    ("qwen2_5_vl simple", "<|video_pad|>"),
    ("qwen2_5_vl simple", "<|image_pad|>"),
    ("llava_vid", "<image>"),
    ("internvl_hf", "<video>"),
    ("internvl_hf", "<IMG_CONTEXT>"),
    ("internvl2", "<video>"),
]


@pytest.fixture(scope="module")
def models():
    made = {}

    def model(name):
        base, _, simple = name.partition(" ")
        if name not in made:
            made[name] = build(f"{base}_flexselect", bool(simple), pretrained="needle", dtype="float32")
        return made[name]

    return model


@pytest.mark.parametrize("place", ["alone", "first", "second"])
@pytest.mark.parametrize(("name", "placeholder"), PLACEHOLDERS)
def test_placeholders_in_a_question(models, stock_videos, generated, name, placeholder, place):
    """In the second question of a video too, whose visual tokens are kept then."""
    video = str(stock_videos["mlvu_dev"][0])
    bad = Question(f"Which {placeholder} is it?", () if place == "alone" else (video,))
    questions = [Question("What is it?", (video,)), bad] if place == "second" else [bad]
    with pytest.raises(FlexSelectError, match=r"^asked, document [01]: the question has <.*> in it, ") as caught:
        ask(models(name), questions)
    assert placeholder in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not generated  # nothing was answered that would be lost


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_vid", "internvl_hf"])
def test_placeholders_of_others_are_text(models, stock_videos, name):
    others = [p for model, p in PLACEHOLDERS if model.partition(" ")[0] != name and p not in ("<video>", "<image>")]
    video = str(stock_videos["mlvu_dev"][0])
    questions = [Question(f"Which {placeholder} is it?", (video,)) for placeholder in dict.fromkeys(others)]
    assert len(ask(models(name), questions)) == len(questions)


def test_a_chat_message_that_says_more_than_the_question(models, stock_videos):
    """A task's messages may differ from the text that its requests carry."""
    video = str(stock_videos["mlvu_dev"][0])

    class Other(Question):
        def messages(self):
            return Question("Which <|video_pad|>?", self.media).messages()

    with pytest.raises(FlexSelectError, match=r"^the message 'Which <\|video_pad\|>\?' has <\|video_pad\|> in it"):
        ask(models("qwen2_5_vl"), [Question("What?", (video,)), Other("Which?", (video,))])


def write_video(path, width, height):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(16):
            pixels = np.full((height, width, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_vl simple"])
@pytest.mark.parametrize(
    ("width", "says"), [(1600, "frames of 1600 x 16 pixels are too narrow"), (4000, "absolute aspect ratio must be")]
)
def test_a_video_too_narrow_to_be_resized(models, tmp_path, stock_videos, name, width, says):
    path = write_video(tmp_path / "wide.mp4", width, 16)
    with pytest.raises(VideoError, match=f"^{path}: {says}") as caught:
        ask(models(name), [Question("What?", (path,))])
    assert "\n" not in str(caught.value)
    base, _, simple = name.partition(" ")
    lenient = build(f"{base}_flexselect", bool(simple), pretrained="needle", strict="no")
    answers = ask(lenient, [Question("What?", (path,)), Question("What?", (str(stock_videos["mlvu_dev"][0]),))])
    assert answers[0] == "" != answers[1]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_vl simple"])
def test_an_image_too_narrow_to_be_resized(models, name):
    with pytest.raises(VideoError, match=r"^an image cannot be read: absolute aspect ratio must be smaller") as caught:
        ask(models(name), [Question("What?", (Image.new("RGB", (8000, 16)),))])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llava_vid", "internvl_hf"])
def test_a_wide_video_is_answered_where_frames_are_made_square(models, tmp_path, name):
    (answer,) = ask(models(name), [Question("What?", (write_video(tmp_path / "wide.mp4", 1600, 16),))])
    assert answer
