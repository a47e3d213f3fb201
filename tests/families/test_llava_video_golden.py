"""LLaVA-Video against vectors made with the original model and with the authors' implementation, where present."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import Qwen2Tokenizer

from lmms_flexselect.families.chatml import chatml, marked_token_ids
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, pixel_values
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from tests.support.golden import GOLDEN, REDUCTIONS, check_selection, close, needs, short_cases, thinned, vectors

FAMILY = "llava_video"
pytestmark = needs(FAMILY)
needs_original = needs(f"{FAMILY}/original")


def load(folder, tower=None):
    config = LlavaVideoConfig.from_checkpoint(str(folder), tower)
    model, info = LlavaVideoForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(info.values()), info
    model.generation_config.eos_token_id = None  # the vectors were made with the end of sequence disabled
    return LlavaVideo(model.eval())


def tower_of(folder, image_size):
    """Of a checkpoint that does not say it: the sizes of its tensors, and heads of 16 values."""
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    own = "model.vision_tower.vision_tower.vision_model."

    def shape(name):
        with safe_open(folder / files[f"{own}{name}"], "pt") as weights:
            return weights.get_slice(f"{own}{name}").get_shape()

    width, _, patch, _ = shape("embeddings.patch_embedding.weight")
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in files if name.startswith(f"{own}encoder.layers")}
    return {
        "hidden_size": width,
        "intermediate_size": shape("encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": len(layers) + 1,  # the last one is not in the file
        "num_attention_heads": width // 16,
        "image_size": image_size,
        "patch_size": patch,
    }


@pytest.fixture(scope="module")
def original():
    golden, folder = vectors(FAMILY, "original/golden"), GOLDEN / FAMILY / "original" / "model"
    return load(folder, tower_of(folder, golden["pixel_values"].shape[-1])), golden


@pytest.fixture(scope="module")
def family():
    return load(GOLDEN / FAMILY / "model")


@pytest.fixture(scope="module")
def reference():
    return vectors(FAMILY, "golden_reference")


@pytest.fixture(scope="module")
def whole_prompt(family, reference):
    (prompt,) = family.prompts(inputs(reference, reference["input_ids"], reference["frames_uint8"]))
    return prompt


def inputs(reference, input_ids, frames):
    """One id stands for the video; which, the vectors say by its place."""
    placeholder = int(reference["input_ids"][0, int(reference["visual_start"])])
    ids = torch.from_numpy(input_ids)
    return {"input_ids": ids.where(ids != placeholder, VIDEO_TOKEN), "videos": [torch.from_numpy(frames)]}


@needs_original
def test_the_originals_token_ids(original):
    _, golden = original
    tokenizer = Qwen2Tokenizer.from_pretrained(GOLDEN / FAMILY / "original" / "model")
    prompt = chatml([("user", f"<image>\n{golden['question']}"), ("assistant", None)])
    assert prompt == str(golden["prompt"])
    assert marked_token_ids(prompt, tokenizer, "<image>", VIDEO_TOKEN) == golden["input_ids"][0].tolist()


@needs_original
def test_the_original_models_own_values(original):
    family, golden = original
    frames, side = torch.from_numpy(golden["frames"]), round(golden["pooled"].shape[1] ** 0.5)
    pixels = pixel_values(frames, golden["pixel_values"].shape[-1])
    close(pixels, golden["pixel_values"], 1e-6)
    with torch.no_grad():
        tokens = family.model.model.encode_frames(pixels)
        close(tokens.flatten(0, 1), golden["packed"], 1e-5)
        close(tokens.unflatten(1, (side, side + 1))[:, :, :-1].flatten(1, 2), golden["pooled"], 1e-5)
    (prompt,) = family.prompts({"input_ids": torch.from_numpy(golden["input_ids"]), "videos": [frames]})
    close(prompt.inputs_embeds[None], golden["inputs_embeds"], 1e-5)
    assert prompt.grids == [(len(frames), side, side + 1)]
    start, count = int(golden["visual_start"]), int(golden["visual_len"])
    assert prompt.visual.nonzero().squeeze(-1).tolist() == list(range(start, start + count))
    with torch.no_grad():
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        logits = family.model(inputs_embeds=prompt.inputs_embeds[None], attention_mask=mask).logits
        close(logits, golden["logits"], 1e-4)
    answer = golden["greedy_ids"][0].tolist()
    (new,) = family.generate([prompt], max_new_tokens=len(answer), do_sample=False, pad_token_id=0)
    assert new.tolist() == answer


@needs_original
def test_average_pooling(original):
    family, golden = original
    family.model.config.mm_spatial_pool_mode = "average"
    try:
        rows, columns = family.model.model.grid
        assert rows * columns * len(golden["frames"]) == len(golden["packed_average"])
        with torch.no_grad():
            tokens = family.model.model.encode_frames(torch.from_numpy(golden["pixel_values"]))
        close(tokens.flatten(0, 1), golden["packed_average"], 1e-5)
    finally:
        family.model.config.mm_spatial_pool_mode = "bilinear"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_references_selection_and_answer(family, reference, whole_prompt, reduction):
    assert int(whole_prompt.visual.sum()) == reference["visual_tokens"]
    assert int(whole_prompt.visual.nonzero()[0]) == reference["visual_start"]
    selector = family.reference_layer(int(reference["reference_layer"]), reduction)
    selection = check_selection(family, whole_prompt, selector, reference, REDUCTIONS[reduction])
    assert int(selection.frame_set.max()) + 1 == reference["num_sets"]


def test_pixels(family, reference):
    sample, size = reference["pixel_values_sample"], family.model.config.vision_config.image_size
    pixels = pixel_values(torch.from_numpy(reference["frames_uint8"][[0, -1]]), size)
    close(thinned(thinned(pixels, sample, 2), sample, 3), sample, 1e-6)


@pytest.mark.parametrize("case", short_cases(FAMILY))
def test_edge_cases(family, reference, case):
    golden = vectors(FAMILY, "golden_short")
    frames = reference["frames_uint8"][: int(golden[f"{case}_num_frames"])]
    (prompt,) = family.prompts(inputs(reference, golden[f"{case}_input_ids"], frames))
    selector = family.reference_layer(int(reference["reference_layer"]))
    check_selection(family, prompt, selector, golden, f"{case}_", reference)
