"""InternVL: from token ids and tiles to prompts; on random weights, against plain arithmetic."""

from __future__ import annotations

import copy
import itertools
import re
from functools import cache

import pytest
import torch

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.internvl.family import InternVL
from tests.support.internvl_inputs import A_TILE, Part, batch, pixels_of, tokens_of
from tests.support.internvl_oracle import original_features
from tests.support.internvl_tokenizers import vocabulary
from tests.support.internvl_weights import TOWER, original_weights, random_native

KINDS = list(itertools.product(("internlm2", "qwen2"), ("300m", "6b")))
SIDE = int(A_TILE**0.5)

VIDEO_ROW: list[Part] = [4, ("video", 5), 6]
TWO_VIDEOS: list[Part] = [3, ("video", 3), 2, ("video", 4), 7]
IMAGE_BEHIND: list[Part] = [2, ("video", 3), 1, ("image", 2), 5]
TEXT_ROW: list[Part] = [12]
ROWS: dict[str, list[Part]] = {
    "one video": VIDEO_ROW,
    "two videos": TWO_VIDEOS,
    "nothing between": [1, ("video", 2), ("video", 1), 2],
    "an image before": [2, ("image", 2), 1, ("video", 3), 5],
    "an image behind": IMAGE_BEHIND,
    "images on all sides": [1, ("image", 1), ("video", 2), ("image", 3), ("video", 1), 2, ("image", 1), 1],
    "images alone": [3, ("image", 1), 2, ("image", 3), 4],
    "text alone": TEXT_ROW,
    "nothing behind": [2, ("video", 2)],
}


@cache
def native(llm="internlm2", vit="300m", dtype=torch.float32):
    return random_native(llm, vit).to(dtype)


def family(*kind, marks="compete", **options):
    model = native(*kind)
    special = vocabulary(kind[0] if kind else "internlm2")[1]
    return InternVL(model, (special["<img>"], special["</img>"]), marks, **options)


def spelled(row, llm="internlm2", numbered=True):
    return tokens_of(row, vocabulary(llm)[1], numbered)


def inputs_of(*rows, padding_side="left"):
    return batch([spelled(row) for row in rows], [len(row) for row in rows], padding_side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("llm", "vit"), KINDS)
def test_embeddings_are_those_of_the_text_and_of_the_tiles_in_their_order(llm, vit, dtype):
    model = native(llm, vit, dtype)
    weights = original_weights(native(llm, vit))
    table = model.get_input_embeddings().weight.detach()
    for row in ROWS.values():
        tokens = spelled(row, llm)
        (prompt,) = family(llm, vit, dtype).prompts(batch([tokens], [3]))
        context = torch.tensor([token.kind == "context" for token in tokens])
        text = torch.tensor([token.id for token in tokens if token.kind != "context"])
        assert torch.equal(prompt.inputs_embeds[~context], table[text])  # looked up, so equal to the last bit
        assert prompt.inputs_embeds.dtype == dtype
        pixels = pixels_of(tokens, 3)
        if len(pixels):
            expected = original_features(weights, pixels, vit, TOWER["num_hidden_layers"]).flatten(0, 1)
            got = prompt.inputs_embeds[context].double()
            # Whatever the dtype, transformers' RMS norms are taken in float32.
            tolerance = 1e-12 if (vit, dtype) == ("300m", torch.float64) else 1e-5
            assert float((got - expected).abs().max()) < tolerance * float(expected.abs().max())


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("marks", ["compete", "stay"])
@pytest.mark.parametrize("name", ROWS)
def test_every_token_is_told_whose_it_is(name, marks, numbered):
    tokens = spelled(ROWS[name], numbered=numbered)
    (prompt,) = family(marks=marks).prompts(batch([tokens], [0]))
    droppable = {"compete": ("context", "mark"), "stay": ("context",)}[marks]
    visual = [token.video >= 0 and token.kind in droppable for token in tokens]
    assert prompt.input_ids.tolist() == [token.id for token in tokens]
    assert prompt.visual.tolist() == visual
    assert prompt.video.tolist() == [token.video if seen else -1 for token, seen in zip(tokens, visual, strict=True)]
    assert prompt.label.tolist() == [-1 if seen else token.video for token, seen in zip(tokens, visual, strict=True)]
    assert prompt.frame.tolist() == [token.frame for token in tokens]
    frames = [part[1] for part in ROWS[name] if not isinstance(part, int) and part[0] == "video"]
    assert prompt.grids == [(count, SIDE, SIDE) for count in frames]
    assert prompt.num_videos == len(frames)
    assert prompt.position_ids.tolist() == [list(range(len(tokens)))]
    assert prompt.closes_up
    some = torch.arange(len(tokens)) % 3 == 1
    assert prompt.compact_positions(some).tolist() == [list(range(int(some.sum())))]


@pytest.mark.parametrize(
    ("name", "marks", "queries"),
    [
        ("one video", "compete", 6),
        ("one video", "stay", 6),
        ("two videos", "compete", 7),
        ("an image before", "compete", 5),
        ("an image behind", "compete", 1 + (2 + 2 * A_TILE) + 5),  # images are part of the question, marks and all
        ("nothing behind", "compete", 0),
        ("text alone", "compete", 12),
    ],
)
def test_the_question_is_all_that_stands_behind_the_last_frame(name, marks, queries):
    (prompt,) = family(marks=marks).prompts(inputs_of(ROWS[name]))
    assert prompt.query_columns.tolist() == list(range(len(prompt) - queries, len(prompt)))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_does_not_reach_the_prompts(padding_side):
    rows = [VIDEO_ROW, TEXT_ROW, TWO_VIDEOS, IMAGE_BEHIND]
    prompts = family().prompts(inputs_of(*rows, padding_side=padding_side))
    assert len({len(prompt) for prompt in prompts}) == len(rows)
    for prompt, row in zip(prompts, rows, strict=True):
        (alone,) = family().prompts(inputs_of(row))
        for name in ("input_ids", "position_ids", "video", "frame", "label"):
            assert torch.equal(getattr(prompt, name), getattr(alone, name)), name
        torch.testing.assert_close(prompt.inputs_embeds, alone.inputs_embeds, rtol=0, atol=1e-5)
        assert prompt.grids == alone.grids


def test_what_a_prompt_does_not_need_may_be_missing():
    """A mask where nothing is padded, and whose tokens are where there is no video."""
    inputs = inputs_of(TEXT_ROW)
    (prompt,) = family().prompts({"input_ids": inputs["input_ids"]})
    (whole,) = family().prompts(inputs)
    for name in ("input_ids", "inputs_embeds", "video", "frame", "label"):
        assert torch.equal(getattr(prompt, name), getattr(whole, name)), name


@pytest.mark.parametrize(("tiles", "chunks"), [(1, [1] * 14), (7, [7, 7]), (9, [9, 5]), (32, [14])])
def test_chunks_change_nothing(tiles, chunks):
    inputs = inputs_of(TWO_VIDEOS, IMAGE_BEHIND, TEXT_ROW, [("video", 2), 1])
    seen = []
    chunked = family("internlm2", "300m", torch.float64, tiles_per_chunk=tiles)
    hook = chunked.model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        prompts = chunked.prompts(inputs)
    finally:
        hook.remove()
    assert seen == chunks
    for prompt, whole in zip(prompts, family("internlm2", "300m", torch.float64).prompts(inputs), strict=True):
        torch.testing.assert_close(prompt.inputs_embeds, whole.inputs_embeds, rtol=0, atol=1e-12)


def test_tiles_go_through_the_tower_by_32_unless_told_otherwise():
    assert family().tiles_per_chunk == 32


def test_no_gradients_are_kept_and_no_weights_changed():
    model = copy.deepcopy(native())
    before = copy.deepcopy(model.state_dict())
    special = vocabulary("internlm2")[1]
    (prompt,) = InternVL(model, (special["<img>"], special["</img>"])).prompts(inputs_of(VIDEO_ROW))
    assert not prompt.inputs_embeds.requires_grad
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("marks", ["both", "", None])
def test_other_ways_with_the_marks_are_refused(marks):
    with pytest.raises(OptionError, match=f"^{re.escape(f'image_marks={marks!r}: must be one of compete, stay')}$"):
        family(marks=marks)


def test_the_reference_layer_reads_this_models_decoder():
    selector = family().reference_layer(1, "mean")
    assert selector.decoder is family().decoder is native().model.language_model
    assert (selector.layer, selector.reduction) == (1, "mean")
    assert not family().round_budget


@pytest.mark.parametrize("tiles", [2, 4])
def test_pixels_that_do_not_fit_the_prompt_are_refused(tiles):
    inputs = inputs_of([2, ("video", 3), 2])
    inputs["pixel_values"] = torch.zeros(tiles, *inputs["pixel_values"].shape[1:])
    says = f"the prompts have places for {3 * A_TILE} visual tokens; the pixels make {tiles * A_TILE}"
    with pytest.raises(FlexSelectError, match=f"^{says}$"):
        family().prompts(inputs)
