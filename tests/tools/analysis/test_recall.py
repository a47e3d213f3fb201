"""Recall@K of every layer, held to whole passes in float64 with eager attention, and plain lists."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.method import relevance
from lmms_flexselect.method.relevance import REDUCTIONS
from lmms_flexselect.tools.analysis import recall
from lmms_flexselect.tools.analysis.haystacks import Haystack, NeedleVideos
from lmms_flexselect.tools.analysis.recall import recall_at_k, recall_of_layers
from tests.support import oracle
from tests.support.random_models import Part
from tests.tools.analysis.conftest import FAMILIES

UNITS = 16
# Of a frame's tokens in their order: how many there are, and which stand for its four quarters.
TOKENS = {"llava_vid": (6, (0, 1, 3, 4)), "qwen2_5_vl": (4, (0, 1, 2, 3)), "internvl_hf": (6, (1, 2, 3, 4))}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def prompts_of(model, count):
    source = NeedleVideos(UNITS, 3)
    samples = source.samples(count)
    return [(s, model.prompt(source.read(s, model.reader.frames_per_unit), s.question)) for s in samples]


@torch.no_grad()
def attentions_of(decoder, prompt, family):
    """Of each layer, in float64: ``(heads, tokens, tokens)``; positions are the scoring rule's, counted anew."""
    plain = copy.deepcopy(decoder).double()
    plain.set_attn_implementation("eager")
    tokens = len(prompt)
    if family == "qwen2_5_vl":
        before = int(prompt.visual.nonzero()[0])
        parts: list[Part] = [before, ("video", (UNITS, 2, 2)), tokens - before - UNITS * 4]
        positions = torch.tensor(oracle.mrope(parts, [2.0])).T[:, None]
    else:
        positions = torch.arange(tokens)[None]
    output = plain(
        inputs_embeds=prompt.inputs_embeds.double()[None],
        position_ids=positions,
        attention_mask=torch.ones(1, tokens, dtype=torch.long),
        use_cache=False,
        output_attentions=True,
    )
    return [of_layer[0] for of_layer in output.attentions]


@pytest.mark.parametrize("selector", ["flexselect", "lite"])
def test_every_layer_against_a_whole_pass(loaded_model, family, selector):
    model = loaded_model(family, selector)
    for sample, prompt in prompts_of(model, 3):
        columns = prompt.visual.nonzero().flatten().tolist()
        a_frame, quarters = TOKENS[family]
        assert len(columns) == UNITS * a_frame
        place = sample.unit * a_frame + quarters[sample.quadrant]
        needle = sample.tokens(model.reader.family, prompt)
        assert needle.nonzero().flatten().tolist() == [columns[place]]
        whole = Haystack("", "", "", sample.unit).tokens(model.reader.family, prompt)
        members = range(sample.unit * a_frame, (sample.unit + 1) * a_frame)
        assert whole.nonzero().flatten().tolist() == [columns[i] for i in members]
        wide = torch.zeros(len(prompt), dtype=torch.bool)
        wide[columns[::3]] = True
        attentions = attentions_of(model.decoder, prompt, family)
        layers = range(model.num_layers)
        assert len(attentions) == model.num_layers
        for tokens in (needle, whole, wide):
            wanted_tokens = {columns.index(column) for column in tokens.nonzero().flatten().tolist()}
            found = recall_of_layers(model.decoder, prompt, tokens, layers)
            for reduction in REDUCTIONS:
                for layer in layers:
                    rows = list(range(columns[-1] + 1, len(prompt)))
                    if family == "internvl_hf":
                        assert prompt.query_columns.tolist() == rows
                    scores = oracle.relevance(attentions[layer], rows, columns, reduction)
                    ranked = sorted(scores, reverse=True)
                    k = len(wanted_tokens)
                    assert ranked[k - 1] / ranked[k] - 1 > 1e-5, "rounding decides; draw another"
                    wanted = len(wanted_tokens & set(oracle.top_k(scores, k))) / k
                    assert found[reduction][layer] == pytest.approx(wanted), (reduction, layer)


def test_some_layers_are_as_among_all(loaded_model):
    model = loaded_model("llava_vid")
    (sample, prompt) = prompts_of(model, 1)[0]
    needle = Haystack("", "", "", sample.unit).tokens(model.reader.family, prompt)
    every = recall_of_layers(model.decoder, prompt, needle, range(model.num_layers))
    some = recall_of_layers(model.decoder, prompt, needle, [1, 4])
    assert some == {reduction: [values[1], values[4]] for reduction, values in every.items()}


def test_the_students_last_layer_is_what_it_selects_by(loaded_model):
    model = loaded_model("llava_vid", "lite")
    family = model.reader.family
    source = NeedleVideos(UNITS, 3)
    (sample,) = source.samples(1)
    (whole,) = family.prompts(model.reader.of_frames(source.read(sample, 1), sample.question))
    prompt = model.prompt(source.read(sample, 1), sample.question)
    columns = whole.visual.nonzero().squeeze(-1)
    everything = torch.ones(len(columns), dtype=torch.bool)
    needle = Haystack("", "", "", sample.unit).tokens(family, prompt)
    k = int(needle.sum())
    keep, _ = family.lite(family.selector)(whole, columns, [everything], [k])
    share = float((keep & needle[prompt.visual]).sum()) / k
    assert recall_of_layers(model.decoder, prompt, needle, [model.num_layers - 1])["max"] == [share]


def test_nothing_of_a_layer_outlives_it(loaded_model, monkeypatch):
    """Queries, keys and scores of one layer are gone when the next one's are there."""
    model = loaded_model("qwen2_5_vl")
    (_, prompt) = prompts_of(model, 1)[0]
    alive: list[weakref.ref] = []
    seen: list[int] = []

    def watched(queries, keys, *arguments):
        seen.append(sum(reference() is not None for reference in alive))
        scores = original(queries, keys, *arguments)
        alive[:] = [reference for reference in alive if reference() is not None]
        alive.extend(map(weakref.ref, (queries, scores)))
        return scores

    original = relevance.visual_relevance
    monkeypatch.setattr(recall, "visual_relevance", watched)
    recall_of_layers(model.decoder, prompt, prompt.visual, range(model.num_layers))
    assert seen == [0] * (2 * model.num_layers)


def test_recall_by_its_definition():
    needle = torch.tensor([True, False, True, True, False, False])
    assert recall_at_k(torch.tensor([9.0, 8, 1, 7, 2, 0]), needle) == pytest.approx(2 / 3)
    assert recall_at_k(torch.zeros(6), needle) == pytest.approx(2 / 3)  # of equal scores the first
    assert recall_at_k(torch.tensor([1.0, 0, 1, 1, 0, 0]), needle) == 1.0


def test_a_needle_that_is_not_in_the_prompt(loaded_model):
    model = loaded_model("llava_vid")
    (_, prompt) = prompts_of(model, 1)[0]
    with pytest.raises(FlexSelectError, match=r"^the needle has no visual token in this prompt$"):
        recall_of_layers(model.decoder, prompt, ~prompt.visual, [0])
