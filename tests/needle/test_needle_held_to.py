"""What the needle model and FlexSelect are held to, on the benchmark's 204 questions a length.

The same prompt is answered with each selector, so videos are decoded and encoded once for all of them; the lmms-eval
command asks the same questions in `make demo`.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_flexselect import FlexSelect, FrameSampling, Qwen2_5_VL, Uniform, read_video
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path

TRAINING_UNITS, LONG_UNITS = 16, 512
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}


@cache
def loaded():
    folder = CHECKPOINTS / "qwen2_5_vl"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Qwen2_5_VL(model), AutoProcessor.from_pretrained(folder)


@cache
def video_of(path):
    return read_video({"video": path, **PIXELS}, FrameSampling(max_frames=2 * LONG_UNITS, fps=2))


def ask(row, selectors):
    """Answers to one question, by selector; and whether the needle's token was among those the last one kept."""
    family, processor = loaded()
    video = video_of(str(video_path(row)))
    content = [{"type": "video"}, {"type": "text", "text": row["question"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], videos=[video.frames], video_metadata=[video.metadata], return_tensors="pt")
    (prompt,) = family.prompts(inputs)
    assert prompt.grids == [(row["units"], 2, 2)]
    answers = {}
    for name, selector in selectors.items():
        selection = FlexSelect(selector, token_budget=64, max_frames_per_set=16)(prompt)
        (new,) = family.generate([selection.prompt], max_new_tokens=1, do_sample=False)
        answers[name] = processor.decode(new, skip_special_tokens=True)
        needle = 4 * row["unit"] + row["quadrant"]
        answers[f"{name} recall"] = bool(selection.visual_kept[needle])
    return answers


def share(outcomes):
    return sum(outcomes) / len(outcomes)


def test_all_tokens_at_training_length():
    rows = documents(TRAINING_UNITS)
    assert len(rows) >= 200
    assert share([answers_shape(ask(row, {"none": None})["none"], row["shape"]) for row in rows]) >= 0.95


@pytest.fixture(scope="module")
def long_videos():
    family, _ = loaded()
    layer = family.model.config.flexselect["reference_layer"]
    selectors = {"none": None, "uniform": Uniform(), "reference": family.reference_layer(layer)}
    rows = documents(LONG_UNITS)
    assert len(rows) >= 200
    answers = []
    for row in rows:
        answers.append((row, ask(row, selectors)))
        if row["id"].endswith("-5"):
            video_of.cache_clear()  # six questions share a video
    return answers


@pytest.fixture(scope="module")
def accuracy(long_videos):
    return {
        name: share([answers_shape(answers[name], row["shape"]) for row, answers in long_videos])
        for name in ("none", "uniform", "reference")
    }


def test_flexselect_answers_at_32_times_that_length(accuracy):
    assert accuracy["reference"] >= 0.90


def test_it_beats_all_tokens_and_uniform_ones(accuracy):
    assert accuracy["reference"] - accuracy["none"] >= 0.30
    assert accuracy["reference"] - accuracy["uniform"] >= 0.50


def test_the_needle_is_kept(long_videos):
    assert share([answers["reference recall"] for _, answers in long_videos]) >= 0.95


def test_all_tokens_fail_by_answering_wrong_not_by_falling_silent(long_videos):
    """Or the comparison would say something of the form of the answer, and nothing of the video's length."""
    assert share([bool(answers["none"].strip()) for _, answers in long_videos]) >= 0.9
