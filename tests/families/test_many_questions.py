"""One video, many questions: what is kept of it changes no score, no choice and no answer, and is not made twice."""

from __future__ import annotations

import copy
import random
from itertools import combinations

import pytest
import torch

from lmms_flexselect import FlexSelect, Uniform
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.runtime.store import VideoStore
from tests.support.questions import ANSWER, FAMILIES, Question, family, inputs_of, lite_selector, selector

SELECTORS = ("flexselect", "lite")
# Several questions a video, some of two videos, in both orders and with another second one, one behind a longer text
# and one behind another text of the same length.
QUESTIONS = [
    *[Question((video,), number) for video in (0, 1, 2) for number in (0, 1, 2)],
    *[Question((0, 1), 3), Question((1, 0), 3), Question((0, 2), 3), Question((0, 1), 4)],
    Question((0,), 1, before=7),
    Question((0,), 1, opening=1),
]


def in_gib(count):
    return count / 2**30


def asked(name, own, chosen, question, leave_out=False, budget=14, **shape):
    """The selection for a question, and its answer."""
    out = [leave_out and own.has_video(("video", video)) for video in question.videos]
    (prompt,) = own.prompts(inputs_of(name, question, out, **shape))
    selection = FlexSelect(chosen, budget, 4, round_budget=False)(prompt)
    (new,) = own.generate([selection.prompt], **ANSWER)
    return selection, new


def assert_same(got, want):
    (selection, new), (wanted, answer) = got, want
    torch.testing.assert_close(selection.scores, wanted.scores, rtol=1e-5, atol=0, equal_nan=True)
    assert torch.equal(selection.keep, wanted.keep)
    assert torch.equal(selection.prompt.inputs_embeds, wanted.prompt.inputs_embeds)
    assert torch.equal(new, answer)


@pytest.fixture(scope="module", params=[(name, kind) for name in FAMILIES for kind in SELECTORS], ids="-".join)
def case(request):
    """A family, a kind of selector, and what is answered without a store."""
    name, kind = request.param
    own = family(name)
    chosen = selector(name, own, kind)
    return name, kind, {question: asked(name, own, chosen, question) for question in QUESTIONS}


def with_store(name, kind, **limits):
    own = family(name)
    own.store = VideoStore(**limits)
    return own, selector(name, own, kind)


@pytest.mark.parametrize("leave_out", [False, True], ids=["pixels", "no pixels"])
@pytest.mark.parametrize("seed", [None, 0])
def test_in_any_order(case, seed, leave_out):
    name, kind, wanted = case
    own, chosen = with_store(name, kind, cpu_gib=1)
    order = list(QUESTIONS) if seed is None else random.Random(seed).sample(QUESTIONS, len(QUESTIONS))
    for question in order:
        assert_same(asked(name, own, chosen, question, leave_out), wanted[question])


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_with_too_little_memory_for_all(case, share):
    name, kind, wanted = case
    own, chosen = with_store(name, kind, cpu_gib=1)
    for question in QUESTIONS:
        asked(name, own, chosen, question)
    limit = int(share * own.store.cpu_bytes)
    own, chosen = with_store(name, kind, cpu_gib=in_gib(limit))
    dropped = set()
    for question in random.Random(2).sample(QUESTIONS, len(QUESTIONS)):
        before = set(own.store._entries)
        assert_same(asked(name, own, chosen, question, leave_out=True), wanted[question])
        dropped |= before - set(own.store._entries)
        assert own.store.cpu_bytes <= limit
    assert dropped or share < 0.1


def test_a_further_question_runs_no_tower_and_reads_its_own_text_alone(case):
    name, kind, wanted = case
    own, chosen = with_store(name, kind, cpu_gib=1)
    decoder = own.decoder if kind == "flexselect" else own.selector.decoder
    tower = {
        "llava_vid": lambda: own.model.model.vision_tower["vision_tower"]["vision_model"],
        "qwen2_5_vl": lambda: own.model.model.visual,
        "internvl_hf": lambda: own.model.model.vision_tower,
    }[name]()
    read, seen = [], []
    hooks = [
        decoder.layers[0].mlp.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[:-1].numel())),
        tower.register_forward_pre_hook(lambda *_: seen.append(1)),
    ]
    try:
        (prompt,) = own.prompts(inputs_of(name, QUESTIONS[0]))
        select = FlexSelect(chosen, 14, 4, round_budget=False)
        select(prompt)
        first, runs = sum(read), len(seen)
        assert first > 60
        assert runs
        read.clear()
        again = select(own.prompts(inputs_of(name, QUESTIONS[1], [True]))[0])
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(again.keep, wanted[QUESTIONS[1]][0].keep)
    assert len(seen) == runs
    behind = len(prompt) - 1 - int(prompt.visual.nonzero()[-1])
    marks = 1 if name == "internvl_hf" else 0  # a label may follow the last visual token of a set
    assert sum(read) <= 3 * (behind + 4 * marks)


def test_another_text_in_front_is_another_beginning(case):
    name, kind, _ = case
    own, chosen = with_store(name, kind, cpu_gib=1)
    counts = []
    for question in (QUESTIONS[0], QUESTIONS[1], *QUESTIONS[-2:]):
        asked(name, own, chosen, question)
        counts.append(sum(key[1] == "prefix" for key in own.store._entries))
    assert counts[0] == counts[1] > 0
    assert counts[2:] == [2 * counts[0], 3 * counts[0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_selectors_of_one_family_keep_apart_what_they_read(name):
    """One after the other on the same store: without a Lite selector, with one, with another, and with none again."""
    own, question = family(name), QUESTIONS[0]
    own.store = VideoStore(cpu_gib=1)
    others = [lite_selector(name, seed) for seed in (3, 4)]
    changed = copy.deepcopy(others[1])
    with torch.no_grad():
        for weight in changed.parameters():
            weight.flatten()[1] += 0.5  # no further value: most samples of a large tensor do not hold it
    scores = []
    for lite in (None, *others, changed, others[0], None):
        plain = family(name)
        own.selector = None
        with_store, without = (f.reference_layer(2) if lite is None else f.lite(lite) for f in (own, plain))
        got = asked(name, own, with_store, question, leave_out=True)
        assert_same(got, asked(name, plain, without, question))
        scores.append(got[0].scores)
    assert torch.equal(scores[0], scores[-1])
    assert torch.equal(scores[1], scores[-2])
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in combinations(scores[:4], 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_one_store_keep_apart_what_they_see(name):
    own, question = family(name), QUESTIONS[0]
    own.store = VideoStore(cpu_gib=1)
    first = asked(name, own, own.reference_layer(2), question)
    other, plain = copy.copy(own), family(name)
    other.model = plain.model = copy.deepcopy(own.model)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.flatten()[1] += 0.5
    got = asked(name, other, other.reference_layer(2), question)
    assert_same(got, asked(name, plain, plain.reference_layer(2), question))
    assert not torch.allclose(got[0].scores, first[0].scores, rtol=1e-3)


def test_another_pooling_makes_other_visual_tokens(monkeypatch):
    own = family("llava_vid")
    own.store = VideoStore(cpu_gib=1)
    sizes = []
    for mode in ("bilinear", "average", "bilinear"):
        monkeypatch.setattr(own.model.config, "mm_spatial_pool_mode", mode)
        (prompt,) = own.prompts(inputs_of("llava_vid", QUESTIONS[0], [own.has_video(("video", 0))]))
        plain = family("llava_vid").prompts(inputs_of("llava_vid", QUESTIONS[0]))[0]
        assert torch.equal(prompt.inputs_embeds, plain.inputs_embeds)
        sizes.append(len(prompt))
    assert sizes[0] == sizes[2]
    assert len(own.store) == 2


@pytest.mark.parametrize("budget", [10_000, 60])
def test_a_budget_no_smaller_than_the_video(case, budget):
    name, kind, _ = case
    plain = family(name)
    want = asked(name, plain, selector(name, plain, kind), QUESTIONS[0], budget=budget)
    own, chosen = with_store(name, kind, cpu_gib=1)
    for _ in range(2):
        assert_same(asked(name, own, chosen, QUESTIONS[0], leave_out=True, budget=budget), want)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_video_that_nobody_knows_is_not_kept(name):
    own, chosen = with_store(name, "flexselect", cpu_gib=1)
    inputs = inputs_of(name, QUESTIONS[0]) | {"video_keys": [None]}
    FlexSelect(chosen, 14, 4)(own.prompts(inputs)[0])
    assert len(own.store) == 0
    assert not own.has_video(None)


def test_frequencies_that_depend_on_the_prompts_length_are_not_kept(monkeypatch):
    """InternVL's dynamic NTK scaling: a longer question gives the video's tokens other keys."""
    own, chosen = with_store("internvl_hf", "flexselect", cpu_gib=1)
    asked("internvl_hf", own, chosen, QUESTIONS[0])
    assert any(key[1] == "prefix" for key in own.store._entries)
    own.store.clear()
    monkeypatch.setattr(own.decoder.config, "max_position_embeddings", 30)  # as the selector sees it
    asked("internvl_hf", own, chosen, QUESTIONS[0])
    assert [key[1] for key in own.store._entries] == ["visual tokens"]


@pytest.mark.parametrize("name", FAMILIES)
def test_controls_keep_the_visual_tokens(name):
    own = family(name)
    own.store = VideoStore(cpu_gib=1)
    want = asked(name, family(name), Uniform(), QUESTIONS[0])
    for _ in range(2):
        assert_same(asked(name, own, Uniform(), QUESTIONS[0], leave_out=True), want)
    assert own.has_video(("video", 0))
    assert [key[1] for key in own.store._entries] == ["visual tokens"]


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_that_are_left_out_and_not_kept_are_missed(name):
    own, _ = with_store(name, "flexselect", cpu_gib=1)
    with pytest.raises(FlexSelectError, match=r"^video \('video', 1\): its pixels are left out, and nothing of it"):
        own.prompts(inputs_of(name, Question((1,), 0), [True]))


@pytest.mark.parametrize("name", FAMILIES)
def test_as_many_keys_as_videos(name):
    with pytest.raises(FlexSelectError, match=r"^1 video\(s\) in the prompts, 2 video_keys and 1 pixels_omitted"):
        family(name).prompts(inputs_of(name, QUESTIONS[0]) | {"video_keys": [1, 2]})


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_token_needs_the_last_positions_logits_alone(name):
    own = family(name)
    shapes = []
    hook = own.model.lm_head.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape[1]))
    try:
        own.generate(own.prompts(inputs_of(name, QUESTIONS[0])), **ANSWER)
    finally:
        hook.remove()
    assert shapes == [1, 1, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_where_the_gpu_is_full_what_is_kept_leaves_it_first(name, monkeypatch):
    own, chosen = with_store(name, "flexselect", cpu_gib=1)
    monkeypatch.setattr(own.store, "leave_gpu", iter([True, False]).__next__)
    generate, tries = own.model.generate, []

    def full_once(**kwargs):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**kwargs)

    monkeypatch.setattr(own.model, "generate", full_once)
    plain = family(name)
    (prompt,) = plain.prompts(inputs_of(name, QUESTIONS[0]))
    want = FlexSelect(plain.reference_layer(2), 14, 4, round_budget=False)(prompt)
    got, new = asked(name, own, chosen, QUESTIONS[0])
    assert torch.equal(got.keep, want.keep)
    assert len(new) == 3
    assert len(tries) == 2
