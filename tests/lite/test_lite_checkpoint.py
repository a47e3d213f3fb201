"""Loading a FlexSelect-Lite selector: every published layout, and everything that is not the selector asked for."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.lite import SelectorNetwork
from lmms_flexselect.lite.checkpoint import load_selector, read_selector_config
from tests.support import selectors
from tests.support.internvl_tokenizers import vocabulary as internvl_vocabulary
from tests.support.selectors import (
    DECODER,
    EPSILON,
    FAMILIES,
    LAYOUTS,
    MARKS,
    MROPE,
    ROPE_THETA,
    TOWERS,
    YARN,
    PlainSelector,
    config_words,
    own_tokenizer,
    random_weights,
    weight_shapes,
    write_selector_folder,
)

FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}


def load(folder, family, dtype=torch.float32, **kwargs):
    return load_selector(str(folder), TOWERS[family], dtype, **kwargs)


def written(family, vocabulary=96, seed=3):
    tower = TOWERS[family]
    if family == "internvl_hf":
        vocabulary = internvl_vocabulary("qwen2")[0]
    return random_weights(weight_shapes(tower, config_words(tower, vocabulary)), seed)


def assert_refused(folder, family, says, load=load):
    """In one line that begins with the option and what was given for it."""
    with pytest.raises(OptionError) as caught:
        load(folder, family)
    assert str(caught.value) == f"selector_path={folder}: {says}"
    assert "\n" not in says


def assert_holds(model, weights):
    state = model.state_dict()
    assert set(state) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(state[name].float(), weight), name


# Layouts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_every_layout_gives_the_same_weights(tmp_path, family, layout, prefix):
    model = load(write_selector_folder(tmp_path / "s", TOWERS[family], layout, prefix), family)
    assert_holds(model, written(family))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_with_fewer_bits_are_loaded_into_more(tmp_path, stored):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], dtype=stored)
    model = load(folder, "llava_vid")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_holds(model, {name: weight.to(stored).float() for name, weight in written("llava_vid").items()})


def test_safetensors_go_before_a_pickle(tmp_path):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], "bin", seed=4)
    write_selector_folder(folder, TOWERS["llava_vid"], "sharded", seed=3)
    assert_holds(load(folder, "llava_vid"), written("llava_vid"))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_internvls_decoder_is_described_flat_or_nested(tmp_path, nested, prefix):
    folder = write_selector_folder(tmp_path / "s", TOWERS["internvl_hf"], prefix=prefix, nested=nested)
    assert ("llm_config" in json.loads((folder / "config.json").read_text())) == nested
    model = load(folder, "internvl_hf")
    assert_holds(model, written("internvl_hf"))
    assert model.decoder.config.hidden_size == selectors.HIDDEN
    assert model.decoder.config.rope_parameters["rope_theta"] == ROPE_THETA


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_that_the_decoder_computes_with_is_read(tmp_path, family):
    words: dict[str, Any] = {
        "hidden_act": "gelu",
        "rms_norm_eps": 3e-4,
        "max_position_embeddings": 777,
        "attention_dropout": 0.5,
    }
    words |= {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1}
    config = load(write_selector_folder(tmp_path / "s", TOWERS[family], **words), family).decoder.config
    for name in set(words) - {"attention_dropout"}:
        assert getattr(config, name) == words[name], name
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    plain = load(write_selector_folder(tmp_path / "t", TOWERS[family]), family).decoder
    assert plain.layers[0].input_layernorm.variance_epsilon == EPSILON
    assert plain.config.layer_types == ["full_attention"] * 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_frequencies_stay_whole_in_half_precision(tmp_path, family, dtype):
    model = load(write_selector_folder(tmp_path / "s", TOWERS[family], dtype=torch.bfloat16), family, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    own = model.decoder.rotary_emb.inv_freq
    assert own.dtype == torch.float32
    exact, _ = PlainSelector(TOWERS[family]).frequencies()
    torch.testing.assert_close(own.double(), exact, rtol=3e-7, atol=0)
    assert not torch.equal(own, own.to(dtype).float())


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_yarn_and_plain_multimodal_rope_turn_otherwise(tmp_path, spelling):
    """The reference forced YaRN in training; it is in the published config.json, by its old name."""
    tower, frequencies = TOWERS["qwen2_5_vl"], {}
    for name, scaling in (("mrope", MROPE), ("yarn", YARN)):
        words: dict[str, Any] = {"rope_scaling": scaling}
        if spelling == "rope_parameters":
            kind = {"mrope": "default", "yarn": "yarn"}[name]
            words = {"rope_scaling": None, "rope_theta": None}
            words[spelling] = {**scaling, "rope_type": kind, "rope_theta": ROPE_THETA}
        rotary = load(write_selector_folder(tmp_path / name, tower, **words), "qwen2_5_vl").decoder.rotary_emb
        frequencies[name] = rotary.inv_freq.double()
        exact, scale = PlainSelector(tower, rope_scaling=scaling).frequencies()
        torch.testing.assert_close(frequencies[name], exact, rtol=1e-6, atol=0)
        assert rotary.attention_scaling == pytest.approx(scale)
        assert rotary.config.rope_parameters["mrope_section"] == selectors.SECTION
    slower = frequencies["mrope"] / frequencies["yarn"]
    assert slower[0] == pytest.approx(1)
    assert slower[-1] == pytest.approx(4)


# Tensors that do not fit

ONE_OF_EACH = {
    "llava_vid": ["image_newline", "mm_projector.2.bias", "layers.1.self_attn.q_proj.bias", "norm.weight"],
    "qwen2_5_vl": ["merger_token_selector.mlp.2.weight", "layers.2.mlp.down_proj.weight", "embed_tokens.weight"],
    "internvl_hf": ["mlp1.3.bias", f"{DECODER['internvl_hf']}layers.0.self_attn.k_proj.weight"],
}
EACH = [(family, name) for family, names in ONE_OF_EACH.items() for name in names]
FITS_NOT = "; the selector does not fit this model"


@pytest.mark.parametrize(("family", "name"), EACH)
@pytest.mark.parametrize("layout", ["safetensors", "sharded bin"])
def test_a_missing_tensor_is_named(tmp_path, family, name, layout):
    folder = write_selector_folder(tmp_path / "s", TOWERS[family], layout, edit=lambda weights: weights.pop(name))
    assert_refused(folder, family, f"1 weight(s) missing, among them {name}{FITS_NOT}")


@pytest.mark.parametrize(("family", "name"), EACH)
def test_a_tensor_of_another_shape_is_named(tmp_path, family, name):
    def spoil(weights):
        weights[name] = torch.cat([weights[name], weights[name][:1]])

    folder = write_selector_folder(tmp_path / "s", TOWERS[family], prefix="model.", edit=spoil)
    assert_refused(folder, family, f"1 weight(s) of another shape, among them {name}{FITS_NOT}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lm_head.weight", "layers.3.input_layernorm.weight", "mm_projector.4.weight"])
def test_an_unknown_tensor_is_named(tmp_path, family, name):
    def spoil(weights):
        weights[name] = torch.ones(selectors.HIDDEN)

    folder = write_selector_folder(tmp_path / "s", TOWERS[family], edit=spoil)
    assert_refused(folder, family, f"1 weight(s) unknown, among them {name}{FITS_NOT}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"num_hidden_layers": 2}, "12 weight(s) unknown, among them {}layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 4}, "12 weight(s) missing, among them {}layers.3.input_layernorm.weight"),
        ({"vocab_size": 95}, "1 weight(s) of another shape, among them {}embed_tokens.weight"),
        ({"num_key_value_heads": 1}, "12 weight(s) of another shape, among them {}layers.0.self_attn.k_proj.bias"),
    ],
)
def test_a_config_of_other_sizes_than_the_weights(tmp_path, family, words, says):
    folder = write_selector_folder(tmp_path / "s", TOWERS[family])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **words}))
    assert_refused(folder, family, says.format(DECODER[family]) + FITS_NOT)


# Selectors for something else


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("other", FAMILIES)
def test_a_selector_of_another_family(tmp_path, family, other):
    folder = write_selector_folder(tmp_path / "s", TOWERS[other], prefix="model.")
    if family == other:
        load(folder, family)
    else:
        assert_refused(folder, family, f"is a selector for {other}; this model needs one for {family}")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_selector_at_all(tmp_path, family):
    def leave_the_decoder(weights):
        for name in [n for n in weights if not n.startswith(DECODER[family] or ("layers", "norm", "embed"))]:
            del weights[name]

    says = f"is not a FlexSelect-Lite selector; this model needs one for {family}"
    assert_refused(write_selector_folder(tmp_path / "s", TOWERS[family], edit=leave_the_decoder), family, says)

    def all_in_one(weights):
        for other in FAMILIES:
            weights.update(random_weights(weight_shapes(TOWERS[other], config_words(TOWERS[other], 9))))

    assert_refused(write_selector_folder(tmp_path / "t", TOWERS[family], edit=all_in_one), family, says)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("llava_vid", "1 weight(s) of another shape, among them mm_projector.0.weight"),
        ("qwen2_5_vl", "4 weight(s) of another shape, among them merger_token_selector.ln_q.weight"),
        ("internvl_hf", "3 weight(s) of another shape, among them mlp1.0.bias"),
    ],
)
def test_a_selector_for_a_tower_of_another_width(tmp_path, family, says):
    folder = write_selector_folder(tmp_path / "s", replace(TOWERS[family], width=48))
    assert_refused(folder, family, says + FITS_NOT)


def test_a_selector_for_another_patch_merging(tmp_path):
    folder = write_selector_folder(tmp_path / "s", replace(TOWERS["qwen2_5_vl"], reading={"spatial_merge_size": 3}))
    says = "3 weight(s) of another shape, among them merger_token_selector.mlp.0.bias"
    assert_refused(folder, "qwen2_5_vl", says + FITS_NOT)


@pytest.mark.parametrize("made_for", [{}, {"mode": "bilinear"}, {"mode": "average"}, {"stride": 4}])
@pytest.mark.parametrize("pooled", [("bilinear", 2), ("bilinear", 4), ("average", 2)])
def test_a_selector_for_another_pooling(tmp_path, made_for, pooled):
    """Published selectors say nothing of it; theirs is the published models'."""
    words = {f"mm_spatial_pool_{name}": value for name, value in made_for.items()}
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], **words)
    pooling = dict(zip(("mm_spatial_pool_mode", "mm_spatial_pool_stride"), pooled, strict=True))
    tower = replace(TOWERS["llava_vid"], reading=pooling)
    own = made_for.get("mode", "bilinear"), made_for.get("stride", 2)
    if own == pooled:
        config = load_selector(str(folder), tower, torch.float32).config
        assert (config.mm_spatial_pool_mode, config.mm_spatial_pool_stride) == pooled
    else:
        says = ["mm_spatial_pool_mode={}, mm_spatial_pool_stride={}".format(*pair) for pair in (own, pooled)]
        assert_refused(
            folder,
            "llava_vid",
            f"was made for {says[0]}; this run has {says[1]}",
            lambda path, _: load_selector(str(path), tower, torch.float32),
        )


# Files that cannot be read


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, how):
    touched = tmp_path / "touched"
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], "bin")
    weights = {**torch.load(folder / FILES["bin"]), "mm_projector.0.weight": Evil(touched)}
    if how == "plain pickle":
        (folder / FILES["bin"]).write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, folder / FILES["bin"], _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(OptionError, match=f"^selector_path={re.escape(str(folder))}: its weights cannot be read") as e:
        load(folder, "llava_vid")
    assert "\n" not in str(e.value)
    assert not touched.exists()
    if how == "zip":
        torch.load(folder / FILES["bin"], weights_only=False)
        assert touched.exists()  # or the test would say nothing


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("size", [0, 5, 500, -100])
def test_a_file_that_is_not_whole(tmp_path, layout, size):
    folder = write_selector_folder(tmp_path / "s", TOWERS["qwen2_5_vl"], layout)
    file = folder / FILES[layout]
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(OptionError, match=f"^selector_path={re.escape(str(folder))}: its weights cannot be read") as e:
        load(folder, "qwen2_5_vl")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("layout", ["sharded", "sharded bin"])
def test_a_file_of_several_that_is_not_there(tmp_path, layout):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], layout)
    (gone,) = folder.glob("*-00002-of-00002.*")
    gone.unlink()
    with pytest.raises(OptionError, match=r"its weights cannot be read .*-00002-of-00002\.") as e:
        load(folder, "llava_vid")
    assert str(e.value).startswith(f"selector_path={folder}: ")


@pytest.mark.parametrize("index", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(tmp_path, index):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], "sharded")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(OptionError, match=f"^selector_path={re.escape(str(folder))}: its weights cannot be read"):
        load(folder, "llava_vid")


def test_a_pickle_of_something_else(tmp_path):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], "bin")
    torch.save(list(written("llava_vid").values()), folder / FILES["bin"])
    with pytest.raises(OptionError, match=f"^selector_path={re.escape(str(folder))}: its weights cannot be read"):
        load(folder, "llava_vid")
    torch.save({"state_dict": written("llava_vid")}, folder / FILES["bin"])
    says = "is not a FlexSelect-Lite selector; this model needs one for llava_vid"
    assert_refused(folder, "llava_vid", says)


def test_a_folder_without_weights(tmp_path):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"])
    (folder / FILES["safetensors"]).rename(folder / "weights.safetensors")
    says = "has no weights: neither model.safetensors, model.safetensors.index.json, pytorch_model.bin"
    assert_refused(folder, "llava_vid", says)


# config.json


@pytest.mark.parametrize("content", [None, "", "words", "{", "[]", "{}"])
def test_no_config(tmp_path, content):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"])
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(OptionError, match=r"^[^\n]+$") as caught:
        load(folder, "llava_vid")
    assert str(caught.value).startswith(f"selector_path={folder}: no checkpoint could be read there (")


def test_no_folder(tmp_path):
    with pytest.raises(OptionError) as caught:
        load(tmp_path / "nowhere", "llava_vid")
    assert str(caught.value).startswith(f"selector_path={tmp_path / 'nowhere'}: no checkpoint could be read there (")
    with pytest.raises(OptionError, match=r"^selector_path=a/b: no checkpoint could be read there"):
        read_selector_config("a/b")


@pytest.mark.parametrize(
    "words",
    [
        {"hidden_act": "nothing"},
        {"rope_theta": "far"},
        {"rope_scaling": {"type": "unheard-of"}},
        {"llm_config": None},
        {"llm_config": 7},
        {"num_attention_heads": 3},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense(tmp_path, words):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **words}))
    with pytest.raises(OptionError, match=r"^[^\n]+$") as caught:
        load(folder, "llava_vid")
    assert str(caught.value).startswith(f"selector_path={folder}: ")


@pytest.mark.parametrize(
    ("words", "reduction", "trained_here"),
    [
        ({}, "max", False),
        ({"drop_func_name": "token_selection"}, "max", False),
        ({"drop_func_name": "max"}, "max", False),
        ({"drop_func_name": "mean"}, "mean", False),
        ({"flexselect": {}}, "max", True),
        ({"flexselect": {"reduction": "mean"}}, "mean", True),
        ({"flexselect": {"reduction": "mean"}, "drop_func_name": "token_selection"}, "mean", True),
        ({"flexselect": {"family": "llava_vid"}, "drop_func_name": "mean"}, "mean", True),
    ],
    ids=str,
)
def test_what_a_selector_is_read_with(tmp_path, words, reduction, trained_here):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], **words)
    config = read_selector_config(str(folder))
    assert (config.reduction, config.trained_here) == (reduction, trained_here)
    assert config.raw["hidden_size"] == selectors.HIDDEN


@pytest.mark.parametrize("words", [{"drop_func_name": "median"}, {"flexselect": {"reduction": "median"}}], ids=str)
def test_an_unknown_reduction(tmp_path, words):
    folder = write_selector_folder(tmp_path / "s", TOWERS["llava_vid"], **words)
    says = "its reduction 'median' is not known; known are max and mean"
    assert_refused(folder, "llava_vid", says)
    assert_refused(folder, "llava_vid", says, lambda path, _: read_selector_config(str(path)))


# InternVL's tokenizer


def test_internvls_own_tokenizer(tmp_path):
    folder = write_selector_folder(tmp_path / "s", TOWERS["internvl_hf"])
    tokenizer = SelectorNetwork.load_tokenizer(str(folder))
    added = own_tokenizer()["added_tokens.json"]
    assert tokenizer.convert_tokens_to_ids(list(MARKS)) == [added[mark] for mark in MARKS]
    ids = tokenizer(f"<|im_start|>{''.join(MARKS)}\n").input_ids
    assert ids[:4] == [added[token] for token in ("<|im_start|>", *MARKS)]


@pytest.mark.parametrize("mark", MARKS)
def test_a_tokenizer_without_a_mark(tmp_path, mark):
    folder = write_selector_folder(tmp_path / "s", TOWERS["internvl_hf"], tokenizer=own_tokenizer(without=[mark]))
    says = f"its tokenizer has no token {mark}"
    assert_refused(folder, "internvl_hf", says, lambda path, _: SelectorNetwork.load_tokenizer(str(path)))


def test_no_tokenizer(tmp_path):
    folder = write_selector_folder(tmp_path / "s", TOWERS["internvl_hf"])
    for name in own_tokenizer():
        (folder / name).unlink()
    with pytest.raises(OptionError, match=r"^[^\n]+$") as caught:
        SelectorNetwork.load_tokenizer(str(folder))
    assert str(caught.value).startswith(f"selector_path={folder}: its tokenizer ")
    shutil.rmtree(folder)
    with pytest.raises(OptionError, match=r"^selector_path=.*: its tokenizer cannot be read"):
        SelectorNetwork.load_tokenizer(str(folder))
