"""Configurations of InternVL2.5's original layout: what they become, and which are refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.config import read_config
from tests.support.internvl_checkpoint import original_config, write_files
from tests.support.internvl_tokenizers import tokenizer_files
from tests.support.internvl_weights import ROPE_FACTOR, ROPE_THETA, TEXT, TOWER, random_native

KINDS = list(itertools.product(("internlm2", "qwen2"), ("300m", "6b")))


def write_config(folder, llm="internlm2", vit="300m", **overrides):
    """All files of a checkpoint but its weights; returns the folder."""
    return write_files(folder, {"config.json": original_config(llm, vit, **overrides), **tokenizer_files(llm)})


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration(tmp_path, kind):
    llm, vit = kind
    config = read_config(str(write_config(tmp_path, *kind)))
    assert type(config.text_config) is {"internlm2": LlamaConfig, "qwen2": Qwen2Config}[llm]
    for part, sizes in ((config.text_config, TEXT), (config.vision_config, TOWER)):
        assert {name: getattr(part, name) for name in sizes} == sizes
    rope = config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("dynamic", ROPE_FACTOR, ROPE_THETA)
    tower = config.vision_config
    assert (tower.norm_type, tower.attention_bias, tower.use_qk_norm) == {
        "300m": ("layer_norm", True, False),
        "6b": ("rms_norm", False, True),
    }[vit]
    assert (config.image_seq_length, config.downsample_ratio, config.vision_feature_layer) == (4, 0.5, -1)
    assert config.image_token_id == random_native(*kind).config.image_token_id
    assert (config.original_template, config.flexselect) == ("internvl2_5", None)
    assert not config.tie_word_embeddings
    assert not config.text_config.tie_word_embeddings


def test_sizes_of_the_published_8b(tmp_path):
    """Its own numbers: 448 pixels in patches of 14 are 256 tokens."""
    tower = {"image_size": 448, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768}
    write_config(tmp_path, force_image_size=448, vision_config=tower, llm_config=text, flexselect={"needle": 1})
    config = read_config(str(tmp_path))
    assert config.image_seq_length == 256
    assert config.text_config.head_dim == 128
    assert config.text_config.max_position_embeddings == 32768
    assert config.flexselect == {"needle": 1}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ps_version": ({"ps_version": "v1"}, "ps_version=v1: only v2 is supported"),
    "pad2square": ({"pad2square": True}, "pad2square=True: only False is supported"),
    "downsample_ratio": ({"downsample_ratio": 0.25}, "downsample_ratio=0.25: only 0.5 is supported"),
    "LoRA": ({"use_llm_lora": 16}, "use_llm_lora=16: only 0 is supported"),
    "image size": ({"force_image_size": 112}, "force_image_size=112: only vision_config.image_size=56 is supported"),
    "decoder": (
        {"llm_config": {"architectures": ["Phi3ForCausalLM"]}},
        "llm_config.architectures=Phi3ForCausalLM: must be one of InternLM2ForCausalLM, Qwen2ForCausalLM",
    ),
    "rope": (
        {"llm_config": {"rope_scaling": {"type": "yarn", "factor": 4.0}}},
        "llm_config.rope_scaling=yarn: must be one of dynamic, null",
    ),
    "epsilon": (
        {"vision_config": {"qk_normalization": True, "layer_norm_eps": 1e-5}},
        "vision_config.layer_norm_eps=1e-05: only 1e-06 with qk_normalization",
    ),
    "no decoder": ({"llm_config": None}, "its configuration files have no llm_config"),
    "a word": (
        {"vision_config": {"hidden_size": "wide"}},
        "vision_config.hidden_size=wide: must be a whole number of at least 1",
    ),
    "no heads": (
        {"llm_config": {"num_key_value_heads": 0}},
        "llm_config.num_key_value_heads=0: must be a whole number of at least 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_code_does_not_do_is_refused(tmp_path, case):
    overrides, complaint = REFUSED[case]
    folder = write_config(tmp_path, **overrides)
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: {complaint}$"):
        read_config(str(folder))


@pytest.mark.parametrize("name", ["llm_config", "vision_config", "llm_config.vocab_size", "vision_config.patch_size"])
def test_an_incomplete_configuration_is_refused(tmp_path, name):
    config = json.loads((write_config(tmp_path) / "config.json").read_text())
    *parents, last = name.split(".")
    del (config[parents[0]] if parents else config)[last]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match=rf"^pretrained=\S+: its configuration files have no {name}$"):
        read_config(str(tmp_path))


def test_a_checkpoint_without_an_image_token_is_refused(tmp_path):
    folder = write_config(tmp_path)
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (folder / name).unlink()
    with pytest.raises(OptionError, match=r"^pretrained=\S+: its configuration files have no <IMG_CONTEXT>$"):
        read_config(str(folder))


@pytest.mark.parametrize("content", [None, "", "not json"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(OptionError, match=r"^pretrained=\S+: no checkpoint could be read there \([^\n]+\)$"):
        read_config(str(tmp_path))
    with pytest.raises(OptionError, match=r"^pretrained=no-such/model: no checkpoint could be read there"):
        load_model("no-such/model", torch.float32)


def test_another_family_is_refused(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    wanted = r"^pretrained=\S+: is a qwen2 checkpoint; this class reads internvl and internvl_chat$"
    with pytest.raises(OptionError, match=wanted):
        read_config(str(tmp_path))
    with pytest.raises(OptionError, match=wanted):
        load_model(str(tmp_path), torch.float32)
