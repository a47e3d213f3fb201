"""Qwen3-VL, dense and mixture of experts: prompts, selection and answers against the library and a plain oracle."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lmms_flexselect import FlexSelect, Uniform
from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.qwen3_vl.family import Qwen3_VL
from lmms_flexselect.store import VideoStore
from tests.support.qwen3_vl import KINDS, LAYERS, Oracle, inputs_of, positions_of, processor, qwen3_vl, token
from tests.support.random_models import Part

NEW_TOKENS = 4
ROWS: dict[str, list[Part]] = {
    "one video": [4, ("video", (7, 2, 3)), 6],
    "two videos": [3, ("video", (5, 2, 2)), 2, ("video", (4, 1, 3)), 5],
    "neighbours": [("video", (5, 2, 2)), ("video", (4, 2, 2)), 5],
    "an image before": [3, ("image", (1, 4, 3)), 2, ("video", (6, 2, 2)), 5],
    "an image behind": [2, ("video", (6, 2, 2)), 1, ("image", (1, 2, 3)), 5],
    "images alone": [2, ("image", (1, 2, 3)), 3],
    "text alone": [9],
}


@cache
def shared(kind, seed):
    return qwen3_vl(kind, seed)


def family(kind="dense", seed=0, **options):
    return Qwen3_VL(shared(kind, seed), processor().tokenizer, **options)


@pytest.mark.parametrize("rope", ["published", "library"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_kept_is_the_librarys_own(kind, name, rope):
    """Embeddings, positions and DeepStack features of every pass, and so the logits, to the last bit."""
    model, (inputs, _) = shared(kind, 0), inputs_of([ROWS[name]])
    calls = []
    hook = model.model.language_model.register_forward_hook(
        lambda _, __, k, out: calls.append((k, out.last_hidden_state)), with_kwargs=True
    )
    try:
        own = model.generate(**inputs, max_new_tokens=NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
        wanted, calls[:] = list(calls), []
        reader = family(kind, rope=rope)
        selection = FlexSelect(None)(reader.prompts(inputs)[0])
        (answer,) = reader.generate([selection.prompt], max_new_tokens=NEW_TOKENS)
    finally:
        hook.remove()
    assert answer.tolist() == own.tolist()
    assert len(calls) == len(wanted) == NEW_TOKENS
    for number, ((got, states), (want, wanted_states)) in enumerate(zip(calls, wanted, strict=True)):
        assert torch.equal(states, wanted_states)
        assert torch.equal(got["position_ids"][-3:], want["position_ids"][-3:])
        assert torch.equal(got["inputs_embeds"], want["inputs_embeds"])
        if number or want["visual_pos_masks"] is None:
            assert got.get("visual_pos_masks") is None
            continue
        assert torch.equal(got["visual_pos_masks"], want["visual_pos_masks"])
        pairs = zip(got["deepstack_visual_embeds"], want["deepstack_visual_embeds"], strict=True)
        assert all(torch.equal(level, wanted_level) for level, wanted_level in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_answered_as_by_the_library(kind):
    rows = [ROWS["one video"], ROWS["text alone"], ROWS["an image before"], ROWS["two videos"]]
    inputs, _ = inputs_of(rows)
    own = shared(kind, 0).generate(**inputs, max_new_tokens=NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
    reader = family(kind)
    answers = reader.generate(reader.prompts(inputs), max_new_tokens=NEW_TOKENS)
    assert [answer.tolist() for answer in answers] == own.tolist()


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_does_not_reach_the_prompts(padding_side):
    rows = [ROWS["one video"], ROWS["text alone"], ROWS["an image before"]]
    reader = family()
    for prompt, row in zip(reader.prompts(inputs_of(rows, padding_side)[0]), rows, strict=True):
        (alone,) = reader.prompts(inputs_of([row])[0])
        for name in ("input_ids", "position_ids", "video", "frame", "label"):
            assert torch.equal(getattr(prompt, name), getattr(alone, name)), name
        torch.testing.assert_close(prompt.inputs_embeds, alone.inputs_embeds, rtol=0, atol=1e-5)
        if len(row) > 1:
            torch.testing.assert_close(prompt.extras["deepstack"], alone.extras["deepstack"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if len(row) > 1 and "alone" not in name])
def test_what_belongs_to_which_unit(name, outer):
    inputs, (pieces,) = inputs_of([ROWS[name]], outer=outer)
    (prompt,) = family().prompts(inputs)
    wanted = [(p.video, p.unit, p.droppable) for p in pieces for _ in p.ids]
    assert prompt.video.tolist() == [video if visual else -1 for video, _, visual in wanted]
    assert prompt.label.tolist() == [-1 if visual else video for video, _, visual in wanted]
    assert prompt.frame.tolist() == [unit for _, unit, _ in wanted]
    assert [tuple(p) for p in prompt.position_ids.T.tolist()] == positions_of(pieces)
    assert prompt.grids == [part[1] for part in ROWS[name] if not isinstance(part, int) and part[0] == "video"]


@pytest.mark.parametrize("before", ["Look:", "1 <", "a < b >", "<3.0 seconds>", "<", ""])
def test_where_the_first_timestamp_begins(before):
    """Behind any text, also text that shares a token with it or looks like it."""
    words = processor().tokenizer
    ids = words(f"{before}<12.5 seconds>").input_ids
    start = family()._timestamp(torch.tensor([*ids, token("vision_start")]))
    label = words.decode(ids[start:])
    assert label in ("<12.5 seconds>", "12.5 seconds>")
    assert words.decode(ids[:start]) + label == f"{before}<12.5 seconds>"


def assert_as_the_oracle_says(kind, seed, row, budget, at_most, layer=2, reduction="max", outer=False):
    inputs, (pieces,) = inputs_of([row], seed=seed, outer=outer)
    wanted = Oracle(qwen3_vl(kind, seed, "eager").double(), layer, budget, at_most, reduction)(
        inputs, pieces, NEW_TOKENS
    )
    assert min(wanted.score_margin, wanted.logit_margin) > 1e-4, "rounding decides this case: choose another seed"
    reader = family(kind, seed)
    (prompt,) = reader.prompts(inputs)
    selection = FlexSelect(reader.reference_layer(layer, reduction), budget, at_most, round_budget=False)(prompt)
    assert selection.frame_set.tolist() == wanted.frame_set
    scores = torch.tensor(wanted.scores, dtype=torch.float64)
    torch.testing.assert_close(selection.scores.double(), scores, rtol=1e-5, atol=1e-9, equal_nan=True)
    assert selection.visual_kept.nonzero().flatten().tolist() == wanted.kept
    assert [tuple(p) for p in selection.prompt.position_ids.T.tolist()] == wanted.positions
    torch.testing.assert_close(selection.prompt.inputs_embeds.double(), wanted.embeds, rtol=0, atol=1e-4)
    answers = reader.generate([selection.prompt], max_new_tokens=NEW_TOKENS)
    assert answers[0].tolist() == wanted.tokens
    return selection


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", KINDS)
def test_one_video_at_every_layer(kind, layer, reduction):
    selection = assert_as_the_oracle_says(kind, 1, ROWS["one video"], 11, 3, layer, reduction)
    assert selection.kept_tokens == 11


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("name", ["two videos", "neighbours", "an image before", "an image behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_media(kind, name, outer):
    assert_as_the_oracle_says(kind, 3, ROWS[name], 9, 2, outer=outer)


def test_shortened_prompts_of_a_batch_are_answered_as_they_are_alone():
    reader = family()
    prompts = reader.prompts(inputs_of([ROWS["one video"], ROWS["an image before"], ROWS["text alone"]])[0])
    select = FlexSelect(reader.reference_layer(1), 7, 2, round_budget=False)
    shortened = [select(prompt).prompt for prompt in prompts]
    assert len({len(prompt) for prompt in shortened}) == 3
    together = reader.generate(shortened, max_new_tokens=NEW_TOKENS)
    alone = [reader.generate([prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in shortened]
    assert [answer.tolist() for answer in together] == [answer.tolist() for answer in alone]


def test_beams_read_the_same_prompt():
    inputs, _ = inputs_of([ROWS["one video"], ROWS["an image before"]])
    options = {"max_new_tokens": NEW_TOKENS, "num_beams": 3}
    own = shared("dense", 0).generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    reader = family()
    assert [a.tolist() for a in reader.generate(reader.prompts(inputs), **options)] == own.tolist()


def test_text_and_images_stay():
    (prompt,) = family().prompts(inputs_of([ROWS["an image before"]])[0])
    selection = FlexSelect(Uniform(), token_budget=3, round_budget=False)(prompt)
    stays = prompt.input_ids != token("video_pad")
    assert bool(selection.keep[stays].all())
    assert int((selection.prompt.input_ids == token("image_pad")).sum()) == 12
    short = selection.prompt
    assert torch.equal(short.extras["deepstack"], prompt.extras["deepstack"][selection.keep])
    assert torch.equal(short.extras["visual"], prompt.extras["visual"][selection.keep])
    assert int(short.extras["visual"].sum()) == 12 + 3


@pytest.mark.parametrize("leave_out", [False, True], ids=["pixels", "no pixels"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_videos_next_question(kind, leave_out):
    """Scores, choice and answer are those of a fresh computation to the last bit, and the tower does not run again."""
    row = ROWS["one video"]
    first, _ = inputs_of([row])
    second = {**first, "input_ids": first["input_ids"].clone()}
    second["input_ids"][:, -6:] = torch.arange(20, 26)

    def answered(reader, selector, inputs):
        selection = FlexSelect(selector, 11, 3, round_budget=False)(reader.prompts(inputs)[0])
        return selection, reader.generate([selection.prompt], max_new_tokens=NEW_TOKENS)[0]

    fresh = family(kind)
    wanted, answer = answered(fresh, fresh.reference_layer(2), second)
    reader = family(kind)
    reader.store = VideoStore(cpu_gib=1)
    selector = reader.reference_layer(2)
    key = ("video", 0)
    answered(reader, selector, {**first, "video_keys": [key]})
    runs = []
    hook = reader.model.model.visual.register_forward_pre_hook(lambda *_: runs.append(1))
    again = {**second, "video_keys": [key]}
    if leave_out:
        assert reader.has_video(key)
        again |= {"left_out": [True], "pixel_values_videos": first["pixel_values_videos"][:0]}
    try:
        selection, new = answered(reader, selector, again)
    finally:
        hook.remove()
    assert not runs
    assert torch.equal(selection.scores, wanted.scores)
    assert torch.equal(selection.keep, wanted.keep)
    assert torch.equal(selection.prompt.inputs_embeds, wanted.prompt.inputs_embeds)
    assert torch.equal(selection.prompt.extras["deepstack"], wanted.prompt.extras["deepstack"])
    assert torch.equal(new, answer)


def test_deepstack_counts():
    """A scoring prompt without DeepStack features has other scores from the second layer on, and the same before."""
    (prompt,) = family().prompts(inputs_of([ROWS["one video"]])[0])
    bare = FlexSelect(None)(prompt).prompt
    bare = type(bare)(**{**vars(bare), "extras": {}, "decoder_arguments": dict})
    for layer in range(LAYERS):
        select = FlexSelect(family().reference_layer(layer), 11, 3, round_budget=False)
        assert torch.equal(select(prompt).scores, select(bare).scores) == (layer == 0)


def test_an_unknown_rope_rule_is_refused():
    with pytest.raises(OptionError, match=r"^rope='yarn': must be one of published, library$"):
        family(rope="yarn")
