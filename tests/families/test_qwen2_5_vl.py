"""Qwen2.5-VL: from a processed batch to prompts, positions, and answers; on random weights."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from lmms_flexselect import FlexSelect, Qwen2_5_VL
from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.mrope_family import packed
from tests.support import oracle
from tests.support.random_models import IMAGE, TOKENS_PER_SECOND, VIDEO, Part, qwen2_5_vl, video_inputs

VIDEO_ROW: list[Part] = [4, ("video", (5, 2, 3)), 6]
MIXED_ROW: list[Part] = [3, ("image", (1, 2, 2)), 2, ("video", (3, 3, 2)), 2, ("video", (7, 2, 2)), 9]
TEXT_ROW: list[Part] = [12]
NEW_TOKENS = 6


@cache
def shared_model():
    return qwen2_5_vl()


@pytest.fixture
def model():
    return shared_model()


@pytest.fixture
def handed_to_decoder(model):
    """Keyword arguments of every forward pass of the text model."""
    calls = []
    hook = model.model.language_model.register_forward_pre_hook(lambda _, __, k: calls.append(k), with_kwargs=True)
    yield calls
    hook.remove()


def real(inputs):
    return inputs["input_ids"][inputs["attention_mask"].bool()]


@pytest.mark.parametrize(
    ("row", "seconds"),
    [(VIDEO_ROW, [2.5]), (MIXED_ROW, [0.5, 3.0]), (TEXT_ROW, []), ([2, ("image", (1, 2, 3)), 3], [])],
)
def test_a_prompt_is_what_the_model_itself_reads(model, handed_to_decoder, row, seconds):
    inputs = video_inputs([row], seconds)
    (prompt,) = Qwen2_5_VL(model).prompts(inputs)
    with torch.no_grad():
        model(**inputs)
    assert torch.equal(prompt.inputs_embeds, handed_to_decoder[-1]["inputs_embeds"][0])
    assert torch.equal(prompt.input_ids, inputs["input_ids"][0])
    assert torch.equal(prompt.visual, prompt.input_ids == VIDEO)
    grids = [part[1] for part in row if not isinstance(part, int) and part[0] == "video"]
    assert prompt.grids == grids
    frames = [t for time, height, width in grids for t in range(time) for _ in range(height * width)]
    videos = [v for v, grid in enumerate(grids) for _ in range(math.prod(grid))]
    assert prompt.frame[prompt.visual].tolist() == frames
    assert prompt.video[prompt.visual].tolist() == videos
    assert set(prompt.frame[~prompt.visual].tolist()) == {-1}


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_does_not_reach_the_prompts(model, padding_side):
    rows, seconds = [VIDEO_ROW, TEXT_ROW, MIXED_ROW], [[2.5], [], [0.5, 3.0]]
    family = Qwen2_5_VL(model)
    batch = family.prompts(video_inputs(rows, [s for own in seconds for s in own], padding_side))
    assert len({len(prompt) for prompt in batch}) == 3
    for prompt, row, own_seconds in zip(batch, rows, seconds, strict=True):
        (alone,) = family.prompts(video_inputs([row], own_seconds))
        for name in ("input_ids", "position_ids", "video", "frame"):
            assert torch.equal(getattr(prompt, name), getattr(alone, name)), name
        torch.testing.assert_close(prompt.inputs_embeds, alone.inputs_embeds, rtol=0, atol=1e-5)
        assert prompt.grids == alone.grids


def test_a_batch_is_answered_as_its_rows_are(model):
    family = Qwen2_5_VL(model)
    batch = family.prompts(video_inputs([VIDEO_ROW, TEXT_ROW, MIXED_ROW], [2.5, 0.5, 3.0]))
    together = family.generate(batch, max_new_tokens=NEW_TOKENS)
    alone = [family.generate([prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in batch]
    assert [answer.tolist() for answer in together] == [answer.tolist() for answer in alone]
    assert all(len(answer) == NEW_TOKENS for answer in together)
    assert len({tuple(answer.tolist()) for answer in together}) == 3


@pytest.mark.parametrize(("row", "seconds"), [(VIDEO_ROW, [2.5]), (MIXED_ROW, [0.5, 3.0]), (TEXT_ROW, [])])
def test_library_positions_are_the_librarys_own(model, handed_to_decoder, row, seconds):
    """With nothing dropped, prompt and decoding positions and the answer are those of the installed `generate`."""
    inputs = video_inputs([row], seconds)
    own = model.generate(**inputs, max_new_tokens=NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
    # The library may put a row of plain text positions first.
    own_positions = [call["position_ids"][-3:] for call in handed_to_decoder]
    handed_to_decoder.clear()
    family = Qwen2_5_VL(model, rope="library")
    (prompt,) = family.prompts(inputs)
    answer = family.generate([prompt], max_new_tokens=NEW_TOKENS)[0]
    positions = [call["position_ids"] for call in handed_to_decoder]
    assert torch.equal(prompt.position_ids, own_positions[0][:, 0])
    assert len(positions) == NEW_TOKENS
    assert [p.tolist() for p in positions] == [p.tolist() for p in own_positions]
    assert answer.tolist() == own.tolist()


def test_library_positions_in_a_batch(model):
    rows, inputs = [VIDEO_ROW, MIXED_ROW], video_inputs([VIDEO_ROW, MIXED_ROW], [2.5, 0.5, 3.0])
    own = model.generate(**inputs, max_new_tokens=NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
    family = Qwen2_5_VL(model, rope="library")
    answers = family.generate(family.prompts(inputs), max_new_tokens=NEW_TOKENS)
    assert len(answers) == len(rows)
    assert [answer.tolist() for answer in answers] == own.tolist()


def test_an_unknown_rope_rule_is_refused(model):
    with pytest.raises(OptionError, match=r"^rope='yarn': must be one of published, library$"):
        Qwen2_5_VL(model, rope="yarn")


@pytest.mark.parametrize(
    ("sampled", "option", "used"),
    [
        (2.5, None, 2.5),
        (2.5, 1.0, 1.0),
        (0.4375, None, 0.4375),
        (0.4375, 4.0, 4.0),
        (None, None, 1.0),
        (None, 3.0, 3.0),
    ],
)
def test_seconds_per_unit(model, sampled, option, used):
    """The real sampling, unless told otherwise; one second where the processor does not say."""
    inputs = video_inputs([VIDEO_ROW], None if sampled is None else [sampled])
    (prompt,) = Qwen2_5_VL(model, seconds_per_unit=option).prompts(inputs)
    parts: list[Part] = [5, ("video", (5, 2, 3)), 7]
    wanted = oracle.mrope(parts, [TOKENS_PER_SECOND * used])
    assert [tuple(p) for p in prompt.position_ids.T.tolist()] == wanted
    (default,) = Qwen2_5_VL(model).prompts(inputs)
    of_video = prompt.visual
    # Rows and columns are where they were; only time is told differently, and what follows moves along.
    assert torch.equal(prompt.position_ids[1:, of_video], default.position_ids[1:, of_video])
    assert torch.equal(prompt.position_ids[:, :5], default.position_ids[:, :5])


def test_seconds_per_unit_does_not_change_what_is_selected(model):
    """A frame set is read as if sampled once a second, whatever the real sampling."""
    family, told = Qwen2_5_VL(model), Qwen2_5_VL(model, seconds_per_unit=7.0)
    inputs = video_inputs([VIDEO_ROW], [2.5])
    selections = [
        FlexSelect(f.reference_layer(2), token_budget=6, max_frames_per_set=2)(f.prompts(inputs)[0])
        for f in (family, told)
    ]
    assert torch.equal(selections[0].scores, selections[1].scores)
    assert torch.equal(selections[0].keep, selections[1].keep)
    assert not torch.equal(selections[0].prompt.position_ids, selections[1].prompt.position_ids)


def test_images_stay(model):
    (prompt,) = Qwen2_5_VL(model).prompts(video_inputs([MIXED_ROW], [1.0, 1.0]))
    selection = FlexSelect(Qwen2_5_VL(model).reference_layer(1), token_budget=8)(prompt)
    image = prompt.input_ids == IMAGE
    assert int(image.sum()) == 4
    assert bool(selection.keep[image].all())
    assert int((selection.prompt.input_ids == IMAGE).sum()) == 4
    assert int((selection.prompt.input_ids == VIDEO).sum()) == selection.kept_tokens < selection.visual_tokens


@pytest.mark.parametrize("layer", [0, 3])
def test_reference_layer_reads_this_models_decoder(model, layer):
    selector = Qwen2_5_VL(model).reference_layer(layer, "mean")
    assert selector.decoder is model.model.language_model
    assert (selector.layer, selector.reduction) == (layer, "mean")


@pytest.mark.parametrize(
    ("most", "chunks"),
    [
        (100, [[(5, 2, 4), (2, 6, 2)]]),
        (40, [[(5, 2, 4)], [(2, 6, 2)]]),
        (25, [[(3, 2, 4)], [(2, 2, 4)], [(2, 6, 2)]]),
        (20, [[(2, 2, 4)], [(2, 2, 4)], [(1, 2, 4), (1, 6, 2)], [(1, 6, 2)]]),
        (1, [*[[(1, 2, 4)]] * 5, *[[(1, 6, 2)]] * 2]),
    ],
)
def test_chunks_for_the_tower_hold_whole_units_and_no_more_than_told(most, chunks):
    assert packed([(5, 2, 4), (2, 6, 2)], most) == chunks
