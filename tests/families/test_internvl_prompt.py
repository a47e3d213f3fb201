"""Frames spelled out in the prompt, and whose each token is."""

from __future__ import annotations

import re

import pytest
import torch

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.prompt import spell_out
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer
from tests.support.internvl_checkpoint import write_original


@pytest.fixture(scope="module", params=["internlm2", "qwen2"])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(str(write_original(tmp_path_factory.mktemp("internvl") / request.param, request.param)))


def spelled(tokenizer, tokens, chosen):
    return tokenizer.decode(tokens.ids[chosen].tolist()).replace("<IMG_CONTEXT>", "*").replace(" ", "")


def test_numbered_frames_own_their_label_and_marks(tokenizer):
    text = f"<|im_start|>user\n<video>\n{IMAGE_TOKEN}\nWho?"
    tokens = spell_out(text, [2], [3], tokenizer, 4, "numbered")
    for frame, before in enumerate(("", "\n", "\n")):
        own = spelled(tokenizer, tokens, (tokens.video == 0) & (tokens.frame == frame))
        assert own.removeprefix("\n") == f"Frame{frame + 1}:<img>****</img>"
        assert own.startswith(before)
    others = spelled(tokenizer, tokens, tokens.video < 0)
    assert "Frame" not in others
    assert others.count("*") == 8  # the image's two tiles
    assert others.endswith("Who?")
    assert ((tokens.video < 0) == (tokens.frame < 0)).all()


def test_the_whole_is_what_the_text_says(tokenizer):
    tokens = spell_out("a<video>\nb", [], [2], tokenizer, 2, "numbered")
    one = f"<img>{IMAGE_TOKEN * 2}</img>"
    assert tokens.ids.tolist() == tokenizer(f"aFrame1: {one}\nFrame2: {one}\nb").input_ids


def test_bare_frames_have_nothing_between_them_and_the_question(tokenizer):
    tokens = spell_out("a<video>\nb", [], [2], tokenizer, 2, "bare")
    one = f"<img>{IMAGE_TOKEN * 2}</img>"
    assert tokens.ids.tolist() == tokenizer(f"a{one}{one}b").input_ids
    assert (tokens.video == 0).sum() == 8


def test_two_videos_are_told_apart(tokenizer):
    tokens = spell_out("<video>\n<video>\nWho?", [], [1, 2], tokenizer, 1, "numbered")
    assert spelled(tokenizer, tokens, tokens.video == 0).count("*") == 1
    assert spelled(tokenizer, tokens, tokens.video == 1).count("*") == 2


def one(count):
    return f"<img>{'*' * count}</img>"


@pytest.mark.parametrize("tokens_per_tile", [1, 3, 256])
@pytest.mark.parametrize("labels", ["numbered", "bare"])
def test_media_of_all_kinds_stand_where_their_marks_were(tokenizer, labels, tokens_per_tile):
    """An image is one run of all its tiles; the newline behind a mark stays, but behind bare frames."""
    text = f"user\nTwo:{IMAGE_TOKEN}\n<video>\nand{IMAGE_TOKEN}<video>\nWho?"
    tokens = spell_out(text, [3, 1], [1, 2], tokenizer, tokens_per_tile, labels)
    a_tile = one(tokens_per_tile)
    first, second = {
        "numbered": (f"Frame1:{a_tile}\n", f"Frame1:{a_tile}\nFrame2:{a_tile}\n"),
        "bare": (a_tile, a_tile * 2),
    }[labels]
    expected = f"user\nTwo:{one(3 * tokens_per_tile)}\n{first}and{a_tile}{second}Who?"
    everything = torch.ones(len(tokens.ids), dtype=torch.bool)
    assert spelled(tokenizer, tokens, everything).removeprefix("<s>") == expected
    for video, frames in ((0, 1), (1, 2)):
        for frame in range(frames):
            of_frame = (tokens.video == video) & (tokens.frame == frame)
            # One run, whole: nothing of it is another's, and nothing else is in it.
            places = of_frame.nonzero().squeeze(-1)
            assert int(places[-1] - places[0]) + 1 == len(places)
            label = f"Frame{frame + 1}:" if labels == "numbered" else ""
            newline = "\n" if frame and label else ""
            assert spelled(tokenizer, tokens, of_frame) == f"{newline}{label}{a_tile}"
            if labels == "bare":
                assert len(places) == tokens_per_tile + 2
    owned = spelled(tokenizer, tokens, tokens.video < 0).removeprefix("<s>")
    behind = "\n" if labels == "numbered" else ""
    assert owned == f"user\nTwo:{one(3 * tokens_per_tile)}\n{behind}and{a_tile}{behind}Who?"


def test_many_frames_are_numbered_on(tokenizer):
    tokens = spell_out("<video>\nWho?", [], [12], tokenizer, 4, "numbered")
    for frame in range(12):
        own = spelled(tokenizer, tokens, tokens.frame == frame)
        assert own.removeprefix("\n") == f"Frame{frame + 1}:{one(4)}"
    lengths = [int((tokens.frame == frame).sum()) for frame in range(12)]
    (_, *nine), ten = lengths[:9], lengths[9:]
    assert set(nine) == {nine[0]}  # a newline more than the first
    assert nine[0] - lengths[0] == len(tokenizer("</img>\n<img>", add_special_tokens=False).input_ids) - 2
    assert set(ten) == {nine[0] + 1}  # a digit more


@pytest.mark.parametrize("labels", ["numbered", "bare"])
def test_frames_that_the_question_tells_of_are_text(tokenizer, labels):
    text = "Is it Frame2: or\nFrame1: <video>\nFrame1: or Frame3: ?"
    tokens = spell_out(text, [], [2], tokenizer, 1, labels)
    others = spelled(tokenizer, tokens, tokens.video < 0).removeprefix("<s>")
    newline = "\n" if labels == "numbered" else ""
    assert others == f"IsitFrame2:or\nFrame1:{newline}Frame1:orFrame3:?"


def test_a_video_without_text_before_it(tokenizer):
    """Nothing to find the first label's beginning in but the label itself."""
    tokens = spell_out("<video>", [], [1], tokenizer, 2, "numbered")
    assert spelled(tokenizer, tokens, tokens.video == 0) == f"Frame1:{one(2)}"
    assert spelled(tokenizer, tokens, tokens.video < 0) in ("<s>", "")


def test_no_media(tokenizer):
    tokens = spell_out("Who?", [], [], tokenizer, 4, "numbered")
    assert tokens.ids.tolist() == tokenizer("Who?").input_ids
    assert tokens.ids.dtype == torch.int64
    assert tokens.video.tolist() == tokens.frame.tolist() == [-1] * len(tokens.ids)


@pytest.mark.parametrize(
    ("text", "images", "frames", "says"),
    [
        ("<video>", [], [], "the prompt has more <video> than there are of them"),
        (f"<video>{IMAGE_TOKEN}", [], [2], f"the prompt has more {IMAGE_TOKEN} than there are of them"),
        ("<video>\nWhat is <video>?", [], [2], "the prompt has more <video> than there are of them"),
        ("", [], [2], "the prompt has no place for 1 of its images or videos"),
        ("", [3], [], "the prompt has no place for 1 of its images or videos"),
        ("<video>", [3], [1, 2], "the prompt has no place for 2 of its images or videos"),
    ],
)
def test_marks_and_media_must_match(tokenizer, text, images, frames, says):
    with pytest.raises(FlexSelectError, match=f"^{re.escape(says)}$"):
        spell_out(text, images, frames, tokenizer, 1, "numbered")


@pytest.mark.parametrize("question", ["What does <img> do?", "<img></img>", "</img>"])
def test_marks_in_the_question_are_text(tokenizer, question):
    tokens = spell_out(f"<video>\n{question}", [], [2], tokenizer, 3, "numbered")
    assert (tokens.video >= 0).sum() == (tokens.frame >= 0).sum()
    behind = int((tokens.frame == 1).nonzero()[-1]) + 1
    assert (
        tokens.ids[behind:].tolist()
        == spell_out(f"\n{question}", [], [], tokenizer, 3, "numbered").ids.tolist()[-len(tokens.ids[behind:]) :]
    )
    assert (tokens.video[behind:] == -1).all()
