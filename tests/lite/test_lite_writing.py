"""Writing a FlexSelect-Lite selector, and loading it again."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.lite import SelectorNetwork
from lmms_flexselect.lite import writing
from lmms_flexselect.lite.checkpoint import load_selector, read_selector_config
from lmms_flexselect.lite.writing import write_selector
from tests.support.selectors import (
    EPSILON,
    FAMILIES,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    MARKS,
    MROPE,
    ROPE_THETA,
    SECTION,
    TOWERS,
    YARN,
    own_tokenizer,
    write_selector_folder,
)

DYNAMIC = {"type": "dynamic", "factor": 2.0}


def published(folder, family, seed=3, **words):
    """A selector's module, from a published folder; and its weights, copied."""
    made = write_selector_folder(folder, TOWERS[family], seed=seed, **words)
    model = load_selector(str(made), TOWERS[family], torch.float32)
    return model, {name: weight.clone() for name, weight in model.state_dict().items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_holds(folder, family, weights, dtype=torch.float32):
    model = load_selector(str(folder), TOWERS[family], dtype)
    assert set(model.state_dict()) == set(weights)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name].to(dtype)), name
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_what_is_written_is_loaded(tmp_path, family, reduction):
    model, weights = published(tmp_path / "published", family)
    folder = tmp_path / "a" / "new"
    write_selector(folder, model.config, model.state_dict(), TOWERS[family], reduction, steps=7)
    again = assert_holds(folder, family, weights)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}

    read = read_selector_config(str(folder))
    assert (read.trained_here, read.reduction) == (True, reduction)
    assert torch.equal(again.decoder.rotary_emb.inv_freq, model.decoder.rotary_emb.inv_freq)
    assert again.decoder.rotary_emb.attention_scaling == model.decoder.rotary_emb.attention_scaling
    ids = torch.randint(0, 96, (1, 9), generator=torch.Generator().manual_seed(0))
    got, want = (m.decoder(inputs_embeds=m.embed(ids)).last_hidden_state for m in (again, model))
    assert torch.equal(got, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_is_in_the_words_of_the_published_ones(tmp_path, family):
    """Which older libraries, and the reference, read."""
    words = {"max_position_embeddings": 777, "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1}
    given: dict[str, Any] = {**words, "hidden_act": "gelu"}
    model, _ = published(tmp_path / "published", family, **given)
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS[family], "max", steps=7, paper="x")
    config = config_of(tmp_path / "new")
    decoder = {
        **given,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_THETA,
        "vocab_size": model.config.vocab_size,
    }
    assert {name: config.pop(name) for name in decoder} == decoder
    scaling = {"mrope_section": SECTION, "rope_type": "mrope", "type": "mrope"} if family == "qwen2_5_vl" else None
    assert config.pop("rope_scaling") == scaling
    tower = TOWERS[family]
    own = {"family": family, "width": tower.width, "reduction": "max", "steps": 7, "paper": "x"}
    own["reading"] = tower.reading
    if family == "llava_vid":
        assert {name: config.pop(name) for name in tower.reading} == tower.reading
    assert config.pop("flexselect") == own
    assert config.pop("model_type") == ("qwen2_5_vl" if family == "qwen2_5_vl" else "qwen2")
    assert config.pop("drop_func_name") == "token_selection"
    assert config.pop("architectures") == ["FlexSelectLite"]
    assert config.pop("tie_word_embeddings") is False
    assert config == {}


def test_the_reductions_published_names(tmp_path):
    model, _ = published(tmp_path / "published", "llava_vid")
    for reduction, name in (("max", "token_selection"), ("mean", "mean")):
        write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["llava_vid"], reduction)
        assert config_of(tmp_path / "new")["drop_func_name"] == name


@pytest.mark.parametrize(
    ("family", "scaling"), [("qwen2_5_vl", MROPE), ("qwen2_5_vl", YARN), ("internvl_hf", DYNAMIC)], ids=str
)
def test_rope_scaling_is_written_as_it_was_published(tmp_path, family, scaling):
    model, _ = published(tmp_path / "published", family, rope_scaling=scaling)
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS[family], "max")
    config = config_of(tmp_path / "new")
    assert config["rope_theta"] == ROPE_THETA
    assert scaling.items() <= config["rope_scaling"].items()
    assert config["rope_scaling"]["rope_type"] == scaling["type"]
    assert "rope_parameters" not in config
    again = load_selector(str(tmp_path / "new"), TOWERS[family], torch.float32).decoder.rotary_emb
    assert torch.equal(again.inv_freq, model.decoder.rotary_emb.inv_freq)
    assert again.attention_scaling == model.decoder.rotary_emb.attention_scaling
    assert {**again.config.rope_parameters} == {**model.decoder.config.rope_parameters, **config["rope_scaling"]} | {
        "rope_type": again.config.rope_parameters["rope_type"]
    }


def test_plain_multimodal_rope_has_its_old_name_whatever_it_was_made_from(tmp_path):
    """Configurations of today call it default."""
    parameters = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": SECTION}
    words: dict[str, Any] = {"rope_scaling": None, "rope_theta": None, "rope_parameters": parameters}
    model, weights = published(tmp_path / "published", "qwen2_5_vl", **words)
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["qwen2_5_vl"], "max")
    config = config_of(tmp_path / "new")
    assert config["rope_theta"] == ROPE_THETA
    assert config["rope_scaling"] == {"rope_type": "mrope", "type": "mrope", "mrope_section": SECTION}
    assert_holds(tmp_path / "new", "qwen2_5_vl", weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written_is_for_its_own_family_and_pooling_alone(tmp_path, family):
    model, _ = published(tmp_path / "published", family)
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS[family], "max")
    for other in set(FAMILIES) - {family}:
        with pytest.raises(OptionError, match=f"is a selector for {family}; this model needs one for {other}$"):
            load_selector(str(tmp_path / "new"), TOWERS[other], torch.float32)


def test_another_pooling_is_written_too(tmp_path):
    pooling: dict[str, Any] = {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 4}
    tower = type(TOWERS["llava_vid"])("llava_vid", 32, pooling)
    made = write_selector_folder(tmp_path / "published", tower, **pooling)
    model = load_selector(str(made), tower, torch.float32)
    write_selector(tmp_path / "new", model.config, model.state_dict(), tower, "max")
    load_selector(str(tmp_path / "new"), tower, torch.float32)
    with pytest.raises(OptionError, match=r": was made for mm_spatial_pool_mode=average, mm_spatial_pool_stride=4;"):
        load_selector(str(tmp_path / "new"), TOWERS["llava_vid"], torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_are_written_in_the_dtype_they_have(tmp_path, dtype):
    """Also ones that are no contiguous blocks, and ones that have gradients."""
    model, weights = published(tmp_path / "published", "llava_vid")
    given = {name: weight.to(dtype) for name, weight in weights.items()}
    given["mm_projector.2.weight"] = given["mm_projector.2.weight"].T.contiguous().T
    given["norm.weight"] = given["norm.weight"].requires_grad_()
    write_selector(tmp_path / "new", model.config, given, TOWERS["llava_vid"], "max")
    stored = load_file(tmp_path / "new" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {dtype}
    assert_holds(tmp_path / "new", "llava_vid", weights)  # random_weights are what bfloat16 can say


def test_internvls_tokenizer_goes_with_it(tmp_path):
    model, weights = published(tmp_path / "published", "internvl_hf")
    tokenizer = SelectorNetwork.load_tokenizer(str(tmp_path / "published"))
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["internvl_hf"], "max", tokenizer)
    assert_holds(tmp_path / "new", "internvl_hf", weights)
    again = SelectorNetwork.load_tokenizer(str(tmp_path / "new"))
    text = f"<|im_start|>user\n{''.join(MARKS)}\nWhat is shown?<|im_end|>"
    assert again(text).input_ids == tokenizer(text).input_ids
    added = own_tokenizer()["added_tokens.json"]
    assert again.convert_tokens_to_ids(list(MARKS)) == [added[mark] for mark in MARKS]
    assert AutoTokenizer.from_pretrained(tmp_path / "new").get_vocab() == tokenizer.get_vocab()


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path):
    model, _ = published(tmp_path / "published", "llava_vid")
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["llava_vid"], "max")
    (tmp_path / "plain").touch()
    for file in (tmp_path / "new").iterdir():
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode, file


def test_a_selector_is_replaced_by_the_next(tmp_path):
    model, _ = published(tmp_path / "published", "llava_vid")
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["llava_vid"], "max")
    other, weights = published(tmp_path / "other", "llava_vid", seed=4)
    write_selector(tmp_path / "new", other.config, other.state_dict(), TOWERS["llava_vid"], "mean")
    assert_holds(tmp_path / "new", "llava_vid", weights)
    assert read_selector_config(str(tmp_path / "new")).reduction == "mean"
    assert len(contents(tmp_path / "new")) == 2


@pytest.mark.parametrize("when", ["before", "halfway", "last"])
def test_a_write_that_fails_leaves_the_old_weights_whole(tmp_path, monkeypatch, when):
    model, weights = published(tmp_path / "published", "llava_vid")
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["llava_vid"], "max")
    before = contents(tmp_path / "new")

    def fail(tensors, path, metadata=None):
        if when == "halfway":
            path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(*((os, "replace") if when == "last" else (writing, "save_file")), fail)
    other, _ = published(tmp_path / "other", "llava_vid", seed=4)
    with pytest.raises(OSError, match="no space left"):
        write_selector(tmp_path / "new", other.config, other.state_dict(), TOWERS["llava_vid"], "max")
    assert contents(tmp_path / "new") == before
    assert_holds(tmp_path / "new", "llava_vid", weights)


def test_a_config_that_cannot_be_written_leaves_the_old_files_whole(tmp_path):
    model, weights = published(tmp_path / "published", "llava_vid")
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["llava_vid"], "max")
    before = contents(tmp_path / "new")
    other = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with pytest.raises(TypeError):
        write_selector(tmp_path / "new", model.config, other, TOWERS["llava_vid"], "mean", steps=object())
    assert contents(tmp_path / "new") == before
    assert_holds(tmp_path / "new", "llava_vid", weights)


def test_the_modules_own_state_is_left_alone(tmp_path):
    model, weights = published(tmp_path / "published", "qwen2_5_vl")
    config = copy.deepcopy(model.config.to_dict())
    write_selector(tmp_path / "new", model.config, model.state_dict(), TOWERS["qwen2_5_vl"], "max")
    assert model.config.to_dict() == config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
