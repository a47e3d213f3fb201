"""Sizes counted from configurations are those of the published files, and of the tiny models that are shipped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from lmms_flexselect.cli import installed_path
from lmms_flexselect.doctor.checkpoints import published
from lmms_flexselect.doctor.plan import resolved
from lmms_flexselect.doctor.sizes import Decoder, selector_sizes, sizes
from lmms_flexselect.lite.networks import Tower
from lmms_flexselect.needle import checkpoint

# Parameters as the hub's pages of the models count them.
PARAMETERS = {
    "lmms-lab/LLaVA-Video-7B-Qwen2": 8_030_348_832,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "OpenGVLab/InternVL2_5-8B": 8_075_365_376,
}
FAMILY = {"lmms-lab": "llava_vid", "Qwen": "qwen2_5_vl", "OpenGVLab": "internvl_hf"}


def counted(family: str, pretrained: str):
    instance, upstream = resolved(f"{family}_flexselect", {"pretrained": pretrained, "selector": "none"})
    return sizes(family, instance._config(pretrained), upstream)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models(name, places):
    assert counted(FAMILY[name.split("/")[0]], places[name]).parameters == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "tokens", "patches", "layers"),
    [
        ("lmms-lab/LLaVA-Video-72B-Qwen2", 210, 729, 80),
        ("OpenGVLab/InternVL2_5-8B", 258, 1025, 32),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 220, 880, 28),  # 308 x 560
    ],
)
def test_what_a_frame_costs(name, tokens, patches, layers, places):
    model = counted(FAMILY[name.split("/")[0]], places[name])
    assert (model.tokens, model.patches, model.decoder.layers) == (tokens, patches, layers)


@pytest.mark.parametrize("family", ["llava_vid", "qwen2_5_vl", "internvl_hf"])
def test_shipped_models_have_as_many_parameters_in_their_files(family):
    folder = installed_path(f"needle/{family}")
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    model = counted(family, str(folder))
    assert model.parameters == stored
    selector = folder / "selector"
    with safe_open(selector / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    raw = json.loads((selector / "config.json").read_text())
    parameters, decoder = selector_sizes(raw, model.tower)
    assert parameters == stored
    assert decoder.layers == raw["num_hidden_layers"]


def test_a_decoders_sizes_are_those_of_its_modules():
    folder = checkpoint("needle", "qwen2_5_vl")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    decoder = Decoder.of(model.config.get_text_config())
    layer = model.model.language_model.layers[-1]
    assert layer.self_attn.q_proj.weight.shape == (decoder.heads * decoder.head_size, decoder.hidden)
    assert layer.self_attn.k_proj.weight.shape == (decoder.key_heads * decoder.head_size, decoder.hidden)
    assert layer.mlp.gate_proj.weight.shape == (decoder.intermediate, decoder.hidden)
    assert len(model.model.language_model.layers) == decoder.layers


def test_published_selectors_are_the_papers_half_billion():
    towers = {
        "yunzhuyunzhu/flexselect_llava_video": Tower("llava_vid", 1152, {}),
        "yunzhuyunzhu/flexselect_qwen2.5vl": Tower("qwen2_5_vl", 1280, {"spatial_merge_size": 2}),
        "yunzhuyunzhu/flexselect_internvl2.5": Tower("internvl_hf", 4096),
    }
    for name, tower in towers.items():
        parameters, decoder = selector_sizes(published()[name], tower)
        assert 0.49e9 < parameters < 0.53e9
        assert (decoder.layers, decoder.hidden, decoder.key_heads, decoder.head_size) == (24, 896, 2, 64)


def test_a_selector_without_sizes_is_refused():
    with pytest.raises(ValueError, match="no hidden_size"):
        selector_sizes({"vocab_size": 10}, Tower("llava_vid", 8))
