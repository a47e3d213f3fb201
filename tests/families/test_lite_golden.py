"""FlexSelect-Lite against vectors made with the reference implementation (not in the repository; skipped if absent)."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from lmms_flexselect import Qwen2_5_VL
from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.prompt import END, START, SYSTEM_MESSAGE, VIDEO_MARK, spell_out
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, load_llava_video
from lmms_flexselect.families.pixels import normalised
from lmms_flexselect.lite.checkpoint import load_selector
from tests.support.golden import GOLDEN, REDUCTIONS, check_selection, close, needs, thinned, vectors


def qwen2_5_vl(golden, frames, selector):
    folder = GOLDEN / "qwen2_5_vl"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    family = Qwen2_5_VL(model)
    family.selector = load_selector(str(selector), family.tower, torch.float32)
    processor = Qwen2VLVideoProcessor.from_pretrained(folder / "model")
    made = processor(videos=[frames.permute(0, 3, 1, 2)], do_resize=False, return_tensors="pt")
    inputs = {name: made[name] for name in ("pixel_values_videos", "video_grid_thw")}
    inputs |= {name: torch.from_numpy(golden[name]) for name in ("input_ids", "second_per_grid_ts")}
    (prompt,) = family.prompts(inputs)
    sample = golden["selector_visual_sample"]
    close(thinned(prompt.scorer.inputs_embeds[prompt.visual], sample), sample, 1e-5)
    return family, prompt


def llava_video(golden, frames, selector):
    family, _ = load_llava_video(str(GOLDEN / "llava_video" / "model"), torch.float32)
    family.model.generation_config.eos_token_id = None
    family.selector = load_selector(str(selector), family.tower, torch.float32)
    ids = torch.from_numpy(golden["input_ids"]).clone()
    ids[0, int(golden["visual_start"])] = VIDEO_TOKEN
    (prompt,) = family.prompts({"input_ids": ids, "videos": [frames]})
    close(prompt.scorer.inputs_embeds[prompt.frame == 0], golden["selector_first_frame_tokens"], 1e-5)
    return family, prompt


def internvl(golden, frames, selector):
    folder = GOLDEN / "internvl2_5"
    tokenizer, own_tokenizer = load_tokenizer(str(folder / "model")), AutoTokenizer.from_pretrained(selector)
    marks = tuple(tokenizer.convert_tokens_to_ids([START, END]))
    own_marks = tuple(own_tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, START, END]))
    model = load_model(str(folder / "model"), torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    family = InternVL(model, marks, selector_mark_ids=own_marks, shift_window=True)
    family.selector = load_selector(str(selector), family.tower, torch.float32)
    size, _ = model.config.vision_config.image_size
    pixels = normalised(frames, size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    text = chatml([("user", f"{VIDEO_MARK}\n{golden['question']}"), ("assistant", None)], SYSTEM_MESSAGE)
    inputs = {"pixel_values": pixels}
    for ids, prefix, own in (("input_ids", "token_", tokenizer), ("selector_ids", "selector_", own_tokenizer)):
        tokens = spell_out(text, [], [len(pixels)], own, model.config.image_seq_length, "bare")
        inputs |= {ids: tokens.ids[None], f"{prefix}video": tokens.video[None], f"{prefix}frame": tokens.frame[None]}
    np.testing.assert_array_equal(inputs["input_ids"], golden["input_ids"])
    np.testing.assert_array_equal(inputs["selector_ids"][0], golden["selector_input_ids"])
    (prompt,) = family.prompts(inputs)
    assert int(golden["offset_delta"]) == int(golden["teacher_visual_start"]) - int(prompt.visual.nonzero()[0])
    return family, prompt


@pytest.mark.parametrize(
    ("folder", "name", "config", "prompt_of"),
    [
        pytest.param("qwen2_5_vl", "golden_lite", "selector", qwen2_5_vl, marks=needs("qwen2_5_vl/golden_lite.npz")),
        pytest.param(
            "qwen2_5_vl",
            "golden_lite_mrope",
            "selector_mrope_config",
            qwen2_5_vl,
            marks=needs("qwen2_5_vl/golden_lite_mrope.npz"),
        ),
        pytest.param("llava_video", "golden_lite", "selector", llava_video, marks=needs("llava_video/golden_lite.npz")),
        pytest.param("internvl2_5", "golden_lite", "selector", internvl, marks=needs("internvl2_5/golden_lite.npz")),
    ],
    ids=["qwen2_5_vl", "qwen2_5_vl_mrope", "llava_video", "internvl2_5"],
)
def test_the_references_scores_choice_and_answer(tmp_path, folder, name, config, prompt_of):
    golden = vectors(folder, name)
    frames = torch.from_numpy(vectors(folder, "golden_reference")["frames_uint8"])
    selector = shutil.copytree(GOLDEN / folder / "selector", tmp_path / "selector")
    shutil.copy(GOLDEN / folder / config / "config.json", selector)
    family, prompt = prompt_of(golden, frames, selector)
    for reduction, prefix in REDUCTIONS.items():
        selection = check_selection(family, prompt, family.lite(family.selector, reduction), golden, prefix)
        assert int(selection.frame_set.max()) + 1 == golden["num_sets"]
