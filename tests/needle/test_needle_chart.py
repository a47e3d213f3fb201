"""The chart needle models: grown from the needle models, and found to need their depth."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.needle import CHART_CHECKPOINTS, needle_families, train, train_chart
from lmms_flexselect.needle.batches import training_batch
from lmms_flexselect.needle.benchmark import CHART_LENGTHS, answers_shape, documents
from lmms_flexselect.needle.naming import by_chart, field_colour
from lmms_flexselect.needle.train import needle_reader
from lmms_flexselect.needle.train_chart import NEW_LAYERS, REFERENCE_LAYER, colour_loss, grow_model
from lmms_flexselect.tools.analysis.haystacks import NeedleVideos
from lmms_flexselect.tools.analysis.model import load
from lmms_flexselect.tools.analysis.recall import recall_of_layers

UNITS = 16


@pytest.fixture(scope="module", params=needle_families())
def model(request):
    return load(f"{request.param}_flexselect", "pretrained=needle_chart")


def questions(model, units, videos):
    """Of each question: the sample, the benchmark's row, and the prompt."""
    source = NeedleVideos(units, 0, "chart")
    rows = {row["id"]: row for row in documents(units, videos, naming=by_chart)}
    for sample in source.samples(6 * videos):
        assert sample.question == rows[sample.id]["question"]
        yield sample, rows[sample.id], model.prompt(source.read(sample, model.reader.frames_per_unit), sample.question)


def answer(model, prompt):
    tokenizer = AutoTokenizer.from_pretrained(CHART_CHECKPOINTS / model.family_name)
    (new,) = model.reader.family.generate([prompt], max_new_tokens=1, do_sample=False)
    return tokenizer.decode(new)


def test_questions_call_a_colour_by_its_field():
    for units in CHART_LENGTHS:
        rows, plain = documents(units, naming=by_chart), documents(units)
        for row, other in zip(rows, plain, strict=True):
            field = row["question"].removeprefix("What shape is the ").removesuffix(" glyph?")
            assert field_colour(field) == row["colour"]
            assert {**row, "question": ""} == {**other, "question": ""}  # the same needles in the same videos


def test_one_layer_finds_the_needle_and_it_is_in_the_middle(model):
    """None does before the colour is known, and none does after the glyph has been read (paper, figure 2)."""
    found = []
    for sample, _, prompt in questions(model, UNITS, 10):
        needle = sample.tokens(model.reader.family, prompt)
        found.append(recall_of_layers(model.decoder, prompt, needle, range(model.num_layers))["max"])
    recall = torch.tensor(found).mean(0)
    reference = REFERENCE_LAYER
    assert model.options.reference_layer == reference == int(recall.argmax())
    assert 0 < NEW_LAYERS <= reference < model.num_layers - 2
    assert recall[reference] >= 0.8
    others = torch.cat([recall[:reference], recall[reference + 1 :]])
    assert float(others.max()) <= 0.35, recall


def test_two_tokens_of_that_layer_answer_and_two_of_an_early_one_do_not(model):
    """So few that it does not do to keep all six glyphs."""
    options = model.options
    right: dict[int, list[bool]] = {layer: [] for layer in (0, options.reference_layer)}
    for _, row, prompt in questions(model, UNITS, 6):
        for layer, outcomes in right.items():
            selector = model.reader.family.reference_layer(layer, options.reduction)
            kept = FlexSelect(selector, 2, options.max_frames_per_set, round_budget=False)(prompt)
            outcomes.append(answers_shape(answer(model, kept.prompt), row["shape"]))
    early, reference = (sum(outcomes) / len(outcomes) for outcomes in right.values())
    assert reference >= 0.85
    assert reference - early >= 0.4


@pytest.mark.parametrize("family", needle_families())
def test_the_first_models_cannot_serve(family):
    first, own = (load(f"{family}_flexselect", f"pretrained={name}") for name in ("needle", "needle_chart"))
    for model, at_least, at_most in ((first, 0.0, 0.5), (own, 0.9, 1.0)):
        right = [answers_shape(answer(model, prompt), row["shape"]) for _, row, prompt in questions(model, UNITS, 5)]
        assert at_least <= sum(right) / len(right) <= at_most


@pytest.mark.parametrize("family", needle_families())
def test_a_grown_model_answers_as_the_one_it_was_grown_from(family):
    _, decoder = grow_model(family)
    source = needle_reader(family).family
    assert len(decoder.layers) == len(source.decoder.layers) + NEW_LAYERS
    torch.manual_seed(0)
    inputs = {"inputs_embeds": torch.randn(2, 9, 128), "use_cache": False}
    with torch.no_grad():
        torch.testing.assert_close(decoder(**inputs)[0], source.decoder(**inputs)[0], rtol=0, atol=1e-5)


def test_the_colour_loss_is_the_distance_from_the_word_of_the_colour():
    trainee, decoder = grow_model("llava_vid")
    batch = training_batch(trainee, np.random.default_rng(0), 2, 3, 2, 1.0, False, by_chart)
    with colour_loss(trainee, decoder) as hooked:
        trainee.model(**trainee.inputs(batch), use_cache=False)
        loss = hooked(batch).item()
        entered, left = hooked.entered, hooked.left
    words = trainee.model.get_input_embeddings().weight
    text = [trainee.tokenizer.convert_ids_to_tokens(row.clamp(min=0).tolist()) for row in batch.ids]
    at_fields: list[float] = []
    elsewhere: list[float] = []
    for video, tokens in enumerate(text):
        for place in range(len(tokens)):
            wanted, distances = entered[video, place], elsewhere
            if place and tokens[place - 1] in list("12345678") and tokens[place] in list("ABCDEFGH"):
                colour = field_colour(tokens[place - 1] + tokens[place])
                wanted, distances = words[trainee.tokenizer(" " + colour).input_ids[0]], at_fields
            distances.append(float((left[video, place] - wanted).square().sum()))
    assert len(at_fields) == 2 * 2
    size = float(words.square().sum(-1).mean())
    assert loss == pytest.approx((sum(at_fields) / len(at_fields) + sum(elsewhere) / len(elsewhere)) / size, rel=1e-4)
    assert sum(elsewhere) < 1e-6 < sum(at_fields)  # new layers let everything through
    before = hooked.left
    trainee.model(**trainee.inputs(batch), use_cache=False)
    assert hooked.left is before  # outside of the context nothing is recorded


@pytest.mark.parametrize("family", needle_families())
def test_the_command_writes_a_checkpoint(monkeypatch, tmp_path, family):
    monkeypatch.setattr(train, "documents", lambda units, naming: documents(units, 1, naming=naming))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["train_chart", str(out), "--family", family, "--steps", "2", "--seed", "5"])
    train_chart.main()
    config, saved = (json.loads((at / "config.json").read_text()) for at in (out, CHART_CHECKPOINTS / family))
    assert config["flexselect"] == saved["flexselect"]
    assert f"OUT --family {family} --steps 2 --seed 5" in (out / "README.md").read_text()
    assert load(f"{family}_flexselect", f"pretrained={out}").num_layers == 6 + NEW_LAYERS


@pytest.mark.parametrize("family", needle_families())
def test_it_packs_well(family):
    size = sum(file.stat().st_size for file in (CHART_CHECKPOINTS / family).rglob("*"))
    assert size < 5_500_000


def test_it_has_no_selector():
    with pytest.raises(OptionError, match="give selector_path"):
        load("llava_vid_flexselect", "pretrained=needle_chart,selector=lite")
