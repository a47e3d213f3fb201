"""InternVL2.5 in the original layout against vectors made with the original model, where they are present.

Their folder lies beside the repository (`../shared/golden/internvl2_5`, or `FLEXSELECT_GOLDEN`); it is not part of it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.config import read_config
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer, stop_token_ids

GOLDEN = Path(os.environ.get("FLEXSELECT_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "internvl2_5"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors in {GOLDEN}")

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
IMAGE_TOKEN_ID = 150  # in the original model's own vectors, which have no tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The original's own checkpoint as a folder that has all the files of a published one but the tokenizer's."""
    folder = tmp_path_factory.mktemp("internvl2_5")
    shutil.copy(GOLDEN / "original" / "model" / "model.safetensors", folder)
    parts = json.loads((GOLDEN / "original" / "model" / "tiny.json").read_text())
    config = {"model_type": "internvl_chat", "downsample_ratio": 0.5, "ps_version": "v2", "template": "internvl2_5"}
    config |= {"vision_config": parts["vision"], "llm_config": parts["llm"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": IMAGE_TOKEN_ID}))
    return str(folder)


def close(actual, expected, tolerance):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", [("short", "long", "short"), ("long", "short", "long")])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_original_models_own_values(original, order, attention):
    """The long prompt is beyond the context limit: its dynamic NTK must not show in what comes after it."""
    model = load_model(original, torch.float32, attn_implementation=attention)
    golden = np.load(GOLDEN / "original" / "golden.npz")
    for name in order:
        pixels, ids = torch.from_numpy(golden[f"{name}_px"]), torch.from_numpy(golden[f"{name}_ids"])
        with torch.no_grad():
            close(model.get_image_features(pixels, return_dict=True).pooler_output, golden[f"{name}_feat"], 1e-5)
            output = model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids))
        close(output.logits, golden[f"{name}_logits"], 1e-4)


@pytest.fixture(scope="module")
def sharded():
    return load_model(str(GOLDEN / "model"), torch.float32)


@pytest.mark.parametrize("run", ["reference", "lite"])
@pytest.mark.parametrize("prefix", ["", "mean_"])
def test_the_references_answer_to_its_own_selection(sharded, run, prefix):
    """Of the sharded checkpoint, from the embeddings that the reference's decoder was given."""
    golden = np.load(GOLDEN / f"golden_{run}.npz")
    embeds = torch.from_numpy(golden[f"{prefix}final_inputs_embeds"])
    output = sharded.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert output.sequences[0].tolist() == golden[f"{prefix}greedy_ids"].tolist()
    close(torch.cat(output.logits), golden[f"{prefix}all_step_logits"], 1e-4)


def prompt(question, frames):
    opened = [
        ("system", f"{SYSTEM}<|im_end|>\n"),
        ("user", f"{'<image>' * frames}{question}<|im_end|>\n"),
        ("assistant", ""),
    ]
    text = "".join(f"<|im_start|>{role}\n{content}" for role, content in opened)
    return text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * 256}</img>")


def test_the_original_tokenizers_ids():
    tokenizer = load_tokenizer(str(GOLDEN / "model"))
    reference, short = np.load(GOLDEN / "golden_reference.npz"), np.load(GOLDEN / "golden_short.npz")
    question = str(reference["question"])
    expected = {131: reference["input_ids"]}
    expected |= {int(short[f"{case}_num_frames"]): short[f"{case}_input_ids"] for case in ("skip3", "one5", "b64")}
    for frames, ids in expected.items():
        assert tokenizer(prompt(question, frames)).input_ids == ids[0].tolist()


def test_a_qwen2_tokenizers_ids(tmp_path):
    """The selector's, which is of the kind that the sizes with a Qwen2 decoder have."""
    shutil.copytree(GOLDEN / "selector", tmp_path, dirs_exist_ok=True)
    config = {"model_type": "internvl_chat", "llm_config": {"architectures": ["Qwen2ForCausalLM"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    question = str(np.load(GOLDEN / "golden_reference.npz")["question"])
    ids = load_tokenizer(str(tmp_path))(prompt(question, 131)).input_ids
    assert ids == np.load(GOLDEN / "golden_lite.npz")["selector_input_ids"].tolist()


def test_where_an_answer_ends(sharded):
    tokenizer = load_tokenizer(str(GOLDEN / "model"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_ids(tokenizer, sharded.generation_config)[0] == end == 732
    assert end in sharded.generation_config.eos_token_id


def test_the_configuration():
    config = read_config(str(GOLDEN / "model"))
    assert (config.image_token_id, config.image_seq_length, config.original_template) == (735, 256, "internvl2_5")
    assert config.text_config.max_position_embeddings == 32768
