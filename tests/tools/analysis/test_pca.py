"""Tokens in two dimensions: what is read of each layer, how it is projected, and the files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmms_flexselect import cli
from lmms_flexselect.tools.analysis.haystacks import NeedleVideos
from lmms_flexselect.tools.analysis.pca import projected, states_of_layers
from tests.tools.analysis.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_what_enters_each_layer(loaded_model, family):
    model = loaded_model(family)
    source = NeedleVideos(8, 0)
    (sample,) = source.samples(1)
    prompt = model.prompt(source.read(sample, model.reader.frames_per_unit), sample.question)
    states = states_of_layers(model.decoder, prompt, [0, 2, 5])
    with torch.no_grad():
        present = torch.ones(len(prompt), dtype=torch.bool)
        positions = prompt.compact_positions(present)
        output = model.decoder(
            inputs_embeds=prompt.inputs_embeds[None],
            position_ids=positions[:, None] if len(positions) > 1 else positions,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            use_cache=False,
            output_hidden_states=True,
        )
    wanted = torch.cat([prompt.visual.nonzero().flatten(), prompt.query_columns])
    assert list(states) == [0, 2, 5]
    for layer, own in states.items():
        torch.testing.assert_close(own, output.hidden_states[layer][0, wanted], rtol=0, atol=1e-5)


@pytest.mark.parametrize("basis", ["all", "visual"])
def test_the_projection_by_its_definition(basis):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(30, 6)) * [5, 3, 1, 1, 0.5, 0.1]
    groups = np.array(["other"] * 18 + ["needle"] * 2 + ["query"] * 10)
    values[20:] += 4
    points, explained = projected(torch.from_numpy(values), groups, basis)
    fitted = values if basis == "all" else values[:20]
    centred = fitted - fitted.mean(0)
    spread, axes = np.linalg.eigh(centred.T @ centred)
    wanted = (values - fitted.mean(0)) @ axes[:, ::-1][:, :2]
    signs = np.sign((points * wanted).sum(0))
    np.testing.assert_allclose(points, wanted * signs, atol=1e-9)
    assert explained == pytest.approx(spread[-2:].sum() / spread.sum())


@pytest.mark.parametrize("selector", ["flexselect", "lite"])
def test_the_command(tmp_path, hf_home, capsys, selector):
    words = ["pca", "--model", "qwen2_5_vl_flexselect", "--model_args", f"pretrained=needle,selector={selector}"]
    out = tmp_path / "new" / "pca.png"
    assert cli.main([*words, "--layers", "0-1", "--basis", "visual", "--sample", "4", "--output", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    with np.load(out.with_suffix(".npz")) as stored:
        assert stored["layers"].tolist() == [0, 1]
        assert stored["points"].shape == (2, len(stored["groups"]), 2)
        assert (stored["groups"] == "needle").sum() == 1
        assert (stored["groups"] == "other").sum() == 63
        assert (stored["explained"] <= 1).all()
    assert cli.main([*words, "--layers", "9"]) == 1
    layers = 5 if selector == "flexselect" else 1
    assert f"layers=9: this model has layers 0 to {layers}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(capsys):
    words = ["--model", "llava_vid_flexselect", "--model_args", "pretrained=needle", "--output", f"{__file__}/pca.png"]
    assert cli.main(["pca", *words]) == 1
    assert f"lmms-flexselect: {__file__}/pca.png: could not be written (" in capsys.readouterr().err
