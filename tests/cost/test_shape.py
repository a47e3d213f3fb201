"""Sizes counted from configurations are those of the published files, and of the tiny models that are shipped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel

from lmms_flexselect.cost.shape import DecoderShape, ModelShape
from lmms_flexselect.families.spec import family as family_spec
from lmms_flexselect.families.spec import load
from lmms_flexselect.needle import checkpoint
from lmms_flexselect.tools.doctor.checkpoints import published
from lmms_flexselect.tools.doctor.plan import resolved
from lmms_flexselect.tools.installed import installed_path

# Parameters as the hub's pages of the models count them.
PARAMETERS = {
    "lmms-lab/LLaVA-Video-7B-Qwen2": 8_030_348_832,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "OpenGVLab/InternVL2_5-8B": 8_075_365_376,
}
FAMILY = {"lmms-lab": "llava_vid", "Qwen": "qwen2_5_vl", "OpenGVLab": "internvl_hf"}


def shape(family: str, pretrained: str, selector: Any = None) -> ModelShape:
    instance, upstream = resolved(f"{family}_flexselect", {"pretrained": pretrained, "selector": "none"})
    return load(family_spec(family).shape)(instance._checkpoint_config(pretrained), upstream, selector)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models(name, places):
    assert shape(FAMILY[name.split("/")[0]], places[name]).parameters == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "tokens", "patches", "layers"),
    [
        ("lmms-lab/LLaVA-Video-72B-Qwen2", 210, 729, 80),
        ("OpenGVLab/InternVL2_5-8B", 258, 1025, 32),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 220, 880, 28),  # 308 x 560
    ],
)
def test_what_a_frame_costs(name, tokens, patches, layers, places):
    model = shape(FAMILY[name.split("/")[0]], places[name])
    assert (model.tokens, model.tower.tokens, model.decoder.layers) == (tokens, patches, layers)


@pytest.mark.parametrize("family", ["llava_vid", "qwen2_5_vl", "internvl_hf"])
def test_shipped_models_have_as_many_parameters_in_their_files(family):
    folder = installed_path(f"needle/{family}")
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    raw = json.loads((folder / "selector" / "config.json").read_text())
    model = shape(family, str(folder), raw)
    assert model.parameters == stored
    assert model.selector is not None
    selector = folder / "selector"
    with safe_open(selector / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert model.selector.parameters == stored
    assert model.selector.decoder.layers == raw["num_hidden_layers"]


def test_a_decoders_sizes_are_those_of_its_modules():
    folder = checkpoint("needle", "qwen2_5_vl")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    decoder = DecoderShape.of(model.config.get_text_config())
    layer = model.model.language_model.layers[-1]
    assert layer.self_attn.q_proj.weight.shape == (decoder.heads * decoder.head_size, decoder.hidden)
    assert layer.self_attn.k_proj.weight.shape == (decoder.key_heads * decoder.head_size, decoder.hidden)
    assert layer.mlp.gate_proj.weight.shape == (decoder.intermediate, decoder.hidden)
    assert len(model.model.language_model.layers) == decoder.layers


def test_published_selectors_are_the_papers_half_billion(places):
    selectors = {
        "lmms-lab/LLaVA-Video-7B-Qwen2": "yunzhuyunzhu/flexselect_llava_video",
        "Qwen/Qwen2.5-VL-7B-Instruct": "yunzhuyunzhu/flexselect_qwen2.5vl",
        "OpenGVLab/InternVL2_5-8B": "yunzhuyunzhu/flexselect_internvl2.5",
    }
    for name, selector in selectors.items():
        own = shape(FAMILY[name.split("/")[0]], places[name], published()[selector]).selector
        assert own is not None
        assert 0.49e9 < own.parameters < 0.53e9
        decoder = own.decoder
        assert (decoder.layers, decoder.hidden, decoder.key_heads, decoder.head_size) == (24, 896, 2, 64)


def test_a_selector_without_sizes_is_refused():
    with pytest.raises(ValueError, match="no hidden_size"):
        shape("llava_vid", str(installed_path("needle/llava_vid")), {"vocab_size": 10})


@pytest.mark.parametrize(
    ("sparse_step", "dense", "sparse"), [(1, [], {0, 1, 2, 3}), (2, [], {1, 3}), (1, [0, 2], {1, 3})]
)
def test_layers_that_have_experts(sparse_step, dense, sparse):
    """By the layers' own modules."""
    config = Qwen3VLMoeTextConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        decoder_sparse_step=sparse_step,
        mlp_only_layers=dense,
    )
    experts = DecoderShape.of(config).experts
    assert experts is not None
    with torch.device("meta"):
        model = Qwen3VLMoeTextModel(config)
    assert experts.layers == {n for n, layer in enumerate(model.layers) if hasattr(layer.mlp, "experts")} == sparse
    own = model.layers[3].mlp.experts
    assert own.gate_up_proj.shape == (experts.number, 2 * experts.intermediate, 16)
