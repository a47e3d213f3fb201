"""Qwen3-VL, dense and mixture of experts: prompts, selection and answers against the library and a plain oracle."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from lmms_flexselect import FlexSelect, ReferenceLayer, Uniform
from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.qwen3_vl.family import Qwen3_VL
from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.lite.checkpoint import load_selector
from lmms_flexselect.lite.networks import Tower
from lmms_flexselect.lite.writing import write_selector
from lmms_flexselect.method.prefix import attention_of
from lmms_flexselect.needle.selectors import DECODER
from lmms_flexselect.runtime.memory import sets_at_once
from lmms_flexselect.runtime.store import VideoStore
from lmms_flexselect.training.student import new_selector
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
        again |= {"pixels_omitted": [True], "pixel_values_videos": first["pixel_values_videos"][:0]}
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


# Published sizes: of the text model layers, hidden size and experts; of the tower width, depth and DeepStack levels.
PUBLISHED = {
    "2b": ("dense", 28, 2048, 16, 6144, True, (1024, 24, [5, 11, 17])),
    "4b": ("dense", 36, 2560, 32, 9728, True, (1024, 24, [5, 11, 17])),
    "8b": ("dense", 36, 4096, 32, 12288, False, (1152, 27, [8, 16, 24])),
    "32b": ("dense", 64, 5120, 64, 25600, False, (1152, 27, [8, 16, 24])),
    "30b-a3b": ("moe", 48, 2048, 32, 6144, False, (1152, 27, [8, 16, 24])),
    "235b-a22b": ("moe", 94, 4096, 64, 12288, False, (1152, 27, [8, 16, 24])),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_classes_of_published_sizes_are_read(size):
    """On no device: the names that selection, scoring and selectors go by are there, and a layer can be named."""
    kind, layers, hidden, heads, inner, tied, (width, depth, levels) = PUBLISHED[size]
    small = qwen3_vl(kind).config
    text, vision = (copy.deepcopy(each).to_dict() for each in (small.text_config, small.vision_config))
    text |= {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": 4 if kind == "moe" else 8,
        "head_dim": 128,
        "intermediate_size": inner,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }
    if kind == "moe":
        text |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768 if hidden == 2048 else 1536}
        text["mlp_only_layers"] = []
    vision |= {"hidden_size": width, "num_heads": 16, "depth": depth, "deepstack_visual_indexes": levels}
    vision |= {"out_hidden_size": hidden, "intermediate_size": 4 * width, "num_position_embeddings": 2304}
    config = type(small)(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = type(qwen3_vl(kind))(config)
    reader = Qwen3_VL(model, processor().tokenizer)
    assert len(reader.decoder.layers) == layers
    assert len(model.model.visual.deepstack_merger_list) == len(levels)
    assert reader.tower == Tower("qwen3_vl", width, {"spatial_merge_size": 2})
    assert hasattr(reader.decoder.layers[0].mlp, "experts") == (kind == "moe")
    assert attention_of(reader.decoder, layers - 1).q_norm.weight.shape == (128,)
    layer, measured = family_named("qwen3_vl").reference_layer(layers)
    assert (layer, measured) == (round(layers * 20 / 28), False)
    assert sets_at_once(reader.decoder, layer, 64 * 220, torch.bfloat16, torch.device("cpu")) == 1


def test_a_selector_of_its_tower_ranks_and_is_trained(tmp_path):
    """Written, loaded, and read with the same three-axis positions; gradients reach its merger."""
    reader = family()
    student = new_selector(
        reader.tower,
        None,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        {**DECODER, "vocab_size": len(processor().tokenizer)},
    )
    write_selector(tmp_path, student.config, student.state_dict(), reader.tower, "max")
    loaded = load_selector(str(tmp_path), reader.tower, torch.float32)
    with pytest.raises(OptionError, match="is a selector for qwen3_vl; this model needs one for qwen2_5_vl"):
        load_selector(str(tmp_path), Tower("qwen2_5_vl", 32, {"spatial_merge_size": 2}), torch.float32)
    lite = reader.lite(loaded)
    inputs, _ = inputs_of([ROWS["an image before"]])
    (prompt,) = reader.prompts(inputs)
    assert prompt.scorer.inputs_embeds.shape == (len(prompt), 32)
    assert not prompt.scorer.extras
    read = []
    hook = reader.model.model.visual.merger.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    reader.prompts(inputs)
    hook.remove()
    with torch.no_grad():
        of_video, of_image = (loaded.merger(features) for features in read)
    ids = prompt.input_ids
    torch.testing.assert_close(prompt.scorer.inputs_embeds[ids == token("video_pad")], of_video)
    torch.testing.assert_close(prompt.scorer.inputs_embeds[ids == token("image_pad")], of_image)
    selection = FlexSelect(lite, 9, 3, round_budget=False)(prompt)
    assert selection.kept_tokens == 9
    student.train()
    reader.lite(student)
    (prompt,) = reader.prompts(inputs)
    columns = prompt.visual.nonzero().squeeze(-1)
    own = ReferenceLayer(student.decoder, 1).relevance(prompt.scorer, columns)
    own.sum().backward()
    assert float(student.merger.mlp[0].weight.grad.abs().sum()) > 0
