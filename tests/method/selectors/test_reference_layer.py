"""The training-free selector: what it reads, what it must not see, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmms_flexselect import Qwen2_5_VL, ReferenceLayer
from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.method.prefix import read_prefix
from lmms_flexselect.method.selectors import reference_layer
from tests.support import oracle
from tests.support.random_models import LAYERS, qwen2_5_vl, video_inputs

LAYER = 2


@pytest.fixture(scope="module")
def family():
    return Qwen2_5_VL(qwen2_5_vl())


@pytest.fixture
def prompt(family):
    """Six units of four tokens, text on both sides."""
    return family.prompts(video_inputs([[3, ("video", (6, 2, 2)), 5]], [1.0]))[0]


@pytest.fixture
def columns(prompt):
    return prompt.visual.nonzero().squeeze(-1)


def sets_of(prompt, columns, count):
    return [prompt.frame[columns] % count == g for g in range(count)]


def test_each_set_keeps_its_best(family, prompt, columns):
    sets, quotas = sets_of(prompt, columns, 2), [7, 3]
    keep, scores = family.reference_layer(LAYER)(prompt, columns, sets, quotas)
    for members, quota in zip(sets, quotas, strict=True):
        chosen = oracle.top_k(scores[members].tolist(), quota)
        assert keep[members].nonzero().flatten().tolist() == chosen
    assert int(keep.sum()) == 10


def test_a_set_is_read_without_the_others(family, prompt, columns):
    """Other sets' tokens may hold anything; neither their content nor their number reaches this set's scores."""
    first, second = sets_of(prompt, columns, 2)
    scores = family.reference_layer(LAYER).relevance(prompt, columns[first])
    disturbed = prompt.inputs_embeds.clone()
    disturbed[columns[second]] = torch.nan
    assert torch.equal(
        family.reference_layer(LAYER).relevance(replace(prompt, inputs_embeds=disturbed), columns[first]), scores
    )
    disturbed[columns[first][0]] += 1
    changed = family.reference_layer(LAYER).relevance(replace(prompt, inputs_embeds=disturbed), columns[first])
    assert not torch.equal(changed, scores)


def test_frames_are_read_as_if_they_were_the_whole_video(family, prompt, columns):
    """Units 1, 3 and 5 of six score as the three units of a video that consists of them."""
    _, second = sets_of(prompt, columns, 2)
    present = ~prompt.visual
    present[columns[second]] = True
    short = family.prompts(video_inputs([[3, ("video", (3, 2, 2)), 5]], [1.0]))[0]
    short = replace(short, inputs_embeds=prompt.inputs_embeds[present])
    wanted = family.reference_layer(LAYER).relevance(short, short.visual.nonzero().squeeze(-1))
    assert torch.equal(family.reference_layer(LAYER).relevance(prompt, columns[second]), wanted)


@pytest.mark.parametrize("query", ["the marker behind the video", "the last token of the prompt"])
def test_the_whole_question_counts(family, prompt, columns, query):
    """From the token right behind the video to the end of the chat suffix."""
    place = int(columns[-1]) + 1 if "marker" in query else len(prompt) - 1
    # At layer 0 queries and keys are the tokens' own, and only text behind the video sees these two: their own rows
    # are where they count.
    selector = family.reference_layer(0, "mean")
    embeds = prompt.inputs_embeds.clone()
    embeds[place] = embeds[place].flip(0)
    changed = selector.relevance(replace(prompt, inputs_embeds=embeds), columns)
    assert not torch.allclose(changed, selector.relevance(prompt, columns), rtol=1e-3, atol=0)


def test_reduction_is_passed_on(family, prompt, columns):
    highest = family.reference_layer(LAYER, "max").relevance(prompt, columns)
    mean = family.reference_layer(LAYER, "mean").relevance(prompt, columns)
    assert bool((highest > mean).all())


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_outside_the_model_is_refused(family, prompt, columns, layer):
    with pytest.raises(OptionError, match=f"^reference_layer={layer}: .* layers 0 to {LAYERS - 1}$"):
        ReferenceLayer(family.decoder, layer).relevance(prompt, columns)


def test_a_prompt_that_ends_with_the_video_is_refused(family):
    inputs = video_inputs([[3, ("video", (6, 2, 2))]], [1.0])
    # The marker behind the video is text, too: take it off.
    inputs = {name: t[:, :-1] if name in ("input_ids", "attention_mask") else t for name, t in inputs.items()}
    (prompt,) = family.prompts(inputs)
    with pytest.raises(FlexSelectError, match="no text after the video"):
        family.reference_layer(LAYER).relevance(prompt, prompt.visual.nonzero().squeeze(-1))


def test_a_shortened_prompt_is_refused(family, prompt):
    shorter = prompt.keep(prompt.frame != 3)
    with pytest.raises(FlexSelectError, match="shortened already"):
        family.reference_layer(LAYER).relevance(shorter, shorter.visual.nonzero().squeeze(-1))


def test_an_overflowing_model_is_refused(family, prompt, columns):
    """float16 overflows in large checkpoints; NaN scores must not pick tokens."""
    embeds = prompt.inputs_embeds.clone()
    embeds[0] = torch.nan
    with pytest.raises(FlexSelectError, match="not finite"):
        family.reference_layer(LAYER)(
            replace(prompt, inputs_embeds=embeds), columns, sets_of(prompt, columns, 2), [3, 3]
        )


def members_of(prompt, columns, count):
    return [of_set.nonzero().squeeze(-1) for of_set in sets_of(prompt, columns, count)]


@pytest.mark.parametrize("at_once", [1, 2, 3, None])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_sets_read_together_score_as_each_by_itself(family, prompt, columns, count, at_once):
    """Four sets of six units are of two sizes."""
    members = members_of(prompt, columns, count)
    scores = ReferenceLayer(family.decoder, LAYER, at_once=at_once).scores(prompt, columns, members)
    for of_set in members:
        alone = family.reference_layer(LAYER).relevance(prompt, columns[of_set])
        torch.testing.assert_close(scores[of_set], alone, rtol=1e-5, atol=0)


def out_of_memory_from(sets, monkeypatch, asked):
    read = read_prefix

    def limited(decoder, layer, embeds, positions, arguments):
        asked.append(len(embeds))
        if len(embeds) >= sets:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB")
        return read(decoder, layer, embeds, positions, arguments)

    monkeypatch.setattr(reference_layer, "read_prefix", limited)


def test_out_of_memory_is_tried_again_with_fewer_sets(family, prompt, columns, monkeypatch):
    members = members_of(prompt, columns, 6)
    asked: list[int] = []
    wanted = family.reference_layer(LAYER).scores(prompt, columns, members)
    out_of_memory_from(3, monkeypatch, asked)
    selector = family.reference_layer(LAYER)
    torch.testing.assert_close(selector.scores(prompt, columns, members), wanted, rtol=1e-5, atol=0)
    assert asked == [6, 3, 2, 1, 3, 2, 1]
    asked.clear()
    selector.scores(prompt, columns, members)
    assert asked == [1] * 6  # it is remembered


def test_one_set_that_does_not_fit_ends_with_advice(family, prompt, columns, monkeypatch):
    asked: list[int] = []
    out_of_memory_from(1, monkeypatch, asked)
    with pytest.raises(FlexSelectError, match=r"^out of GPU memory: .* max_frames_per_set, .*device_map=auto\)$"):
        family.reference_layer(LAYER).scores(prompt, columns, members_of(prompt, columns, 6))
    assert asked == [6, 3, 2, 1]
