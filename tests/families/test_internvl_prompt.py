"""Frames spelled out in the prompt, and whose each token is."""

from __future__ import annotations

import pytest

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.internvl_config import IMAGE_TOKEN
from lmms_flexselect.families.internvl_prompt import spell_out
from lmms_flexselect.families.internvl_tokenizer import load_tokenizer
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


@pytest.mark.parametrize(("text", "frames"), [("<video>", []), ("", [2]), ("<video>", [1, 2])])
def test_marks_and_media_must_match(tokenizer, text, frames):
    with pytest.raises(FlexSelectError, match=r"the prompt has (more|no place)"):
        spell_out(text, [], frames, tokenizer, 1, "numbered")
