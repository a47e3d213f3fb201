"""LLaVA-Video against vectors made with the original model and the reference implementation, where they are present.

Their folder lies beside the repository (`../shared/golden/llava_video`, or `FLEXSELECT_GOLDEN`); it is not part of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Tokenizer

from lmms_flexselect import FlexSelect
from lmms_flexselect.families.chatml import chatml, marked_token_ids
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, pixel_values
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM

GOLDEN = Path(os.environ.get("FLEXSELECT_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "llava_video"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors in {GOLDEN}")

ORIGINAL_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 384,
    "patch_size": 14,
}


def load(folder, tower=None, attention="sdpa"):
    config = LlavaVideoConfig.from_checkpoint(str(folder), tower)
    model, info = LlavaVideoForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    assert not any(info.values()), info
    return LlavaVideo(model.eval())


@pytest.fixture(scope="module")
def original():
    return load(GOLDEN / "original" / "model", ORIGINAL_TOWER), np.load(GOLDEN / "original" / "golden.npz")


@pytest.fixture(scope="module")
def family():
    return load(GOLDEN / "model")


@pytest.fixture(scope="module")
def reference():
    return np.load(GOLDEN / "golden_reference.npz")


@pytest.fixture(scope="module")
def whole_prompt(family, reference):
    (prompt,) = family.prompts(inputs(reference, frames=torch.from_numpy(reference["frames_uint8"])))
    return prompt


def close(actual, expected, tolerance):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_the_originals_token_ids(original):
    _, golden = original
    tokenizer = Qwen2Tokenizer.from_pretrained(GOLDEN / "original" / "model")
    prompt = chatml([("user", f"<image>\n{golden['question']}"), ("assistant", None)])
    assert prompt == str(golden["prompt"])
    assert marked_token_ids(prompt, tokenizer, "<image>", VIDEO_TOKEN) == golden["input_ids"][0].tolist()


def test_the_original_models_own_values(original):
    family, golden = original
    pixels = pixel_values(torch.from_numpy(golden["frames"]), 384)
    close(pixels, golden["pixel_values"], 1e-6)
    with torch.no_grad():
        tokens = family.model.model.encode_frames(pixels)
        close(tokens.flatten(0, 1), golden["packed"], 1e-5)
        close(tokens[:, torch.arange(210) % 15 != 14], golden["pooled"], 1e-5)
    (prompt,) = family.prompts(
        {"input_ids": torch.from_numpy(golden["input_ids"]), "videos": [torch.from_numpy(golden["frames"])]}
    )
    close(prompt.inputs_embeds[None], golden["inputs_embeds"], 1e-5)
    assert prompt.grids == [(6, 14, 15)]
    assert prompt.visual.nonzero().squeeze(-1).tolist() == list(range(44, 44 + 1260))
    with torch.no_grad():
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        logits = family.model(inputs_embeds=prompt.inputs_embeds[None], attention_mask=mask).logits
        close(logits, golden["logits"], 1e-4)
    (new,) = family.generate([prompt], max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=256)
    assert new.tolist() == golden["greedy_ids"][0].tolist()


def test_average_pooling(original):
    family, golden = original
    family.model.config.mm_spatial_pool_mode = "average"
    try:
        assert family.model.model.grid == (13, 14)
        with torch.no_grad():
            tokens = family.model.model.encode_frames(torch.from_numpy(golden["pixel_values"]))
        close(tokens.flatten(0, 1), golden["packed_average"], 1e-5)
    finally:
        family.model.config.mm_spatial_pool_mode = "bilinear"


def inputs(golden, ids_name="input_ids", frames=None):
    ids = torch.from_numpy(golden[ids_name])
    vocabulary = 390
    return {"input_ids": ids.where(ids < vocabulary, VIDEO_TOKEN), "videos": [frames]}


def check(family, prompt, golden, prefix, budget, reduction, layer):
    select = FlexSelect(family.reference_layer(layer, reduction), budget, budget_remainder="drop", round_budget=False)
    selection = select(prompt)
    kept = selection.visual_kept.nonzero().squeeze(-1).numpy()
    expected = golden[f"{prefix}selected_indices"]
    np.testing.assert_array_equal(kept, expected.nonzero()[0] if expected.dtype == bool else expected)
    frames = selection.visual_frame.numpy()
    number = 0
    while f"{prefix}frames_set{number}" in golden:
        of_set = np.isin(frames, golden[f"{prefix}frames_set{number}"])
        assert (selection.frame_set.numpy()[of_set] == number).all()
        want = golden[f"{prefix}scores_set{number}"]
        got = selection.scores.numpy()[of_set]
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
        np.testing.assert_allclose(got, want, rtol=5e-5)  # single entries: the vectors' own rounding
        number += 1
    np.testing.assert_array_equal(selection.prompt.position_ids, golden[f"{prefix}final_position_ids"])
    embeds = selection.prompt.inputs_embeds[None]
    final = golden[f"{prefix}final_inputs_embeds"]
    close(embeds if embeds.shape == final.shape else embeds[:, ::7], final, 1e-5)
    output = family.model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=387,
        output_logits=True,
        return_dict_in_generate=True,
    )
    close(output.logits[0][0], golden[f"{prefix}first_token_logits"], 1e-4)
    if f"{prefix}all_step_logits" in golden:
        close(torch.cat(output.logits), golden[f"{prefix}all_step_logits"], 1e-4)
    assert output.sequences[0].tolist() == golden[f"{prefix}greedy_ids"].tolist()
    return selection


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_the_references_selection_and_answer(family, reference, whole_prompt, reduction):
    frames = torch.from_numpy(reference["frames_uint8"])
    prompt = whole_prompt
    assert int(prompt.visual.sum()) == reference["visual_tokens"]
    prefix = "" if reduction == "max" else "mean_"
    selection = check(family, prompt, reference, prefix, int(reference["budget"]), reduction, 2)
    assert int(selection.frame_set.max()) + 1 == reference["num_sets"]
    if reduction == "max":
        pixels = pixel_values(frames[[0, -1]], 384)
        close(pixels[:, :, ::8, ::8], reference["pixel_values_sample"], 1e-6)


@pytest.mark.parametrize("case", ["skip3", "one5", "b64", "b65"])
def test_edge_cases(family, reference, case):
    golden = np.load(GOLDEN / "golden_short.npz")
    frames = torch.from_numpy(reference["frames_uint8"][: int(golden[f"{case}_num_frames"])])
    (prompt,) = family.prompts(inputs(golden, f"{case}_input_ids", frames))
    check(family, prompt, golden, f"{case}_", int(golden[f"{case}_budget"]), "max", 2)
