"""What the needle models' FlexSelect-Lite selectors are held to."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from lmms_flexselect import FlexSelect, Uniform
from lmms_flexselect.lite.checkpoint import load_selector
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path
from lmms_flexselect.training.losses import rank_correlation

pytestmark = pytest.mark.benchmark

TRAINING_UNITS, LONG_UNITS = 16, 512


@pytest.fixture(scope="module")
def selectors(checkpoint):
    """FlexSelect's, FlexSelect-Lite's and the control's."""
    family, folder = checkpoint.family, checkpoint.folder / "selector"
    if hasattr(family, "selector_mark_ids"):
        marks = checkpoint.tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<img>", "</img>"])
        family.selector_mark_ids = tuple(marks)
    lite = family.lite(load_selector(str(folder), family.tower, torch.float32))
    layer = checkpoint.model.config.flexselect["reference_layer"]
    return {"flexselect": family.reference_layer(layer), "lite": lite, "uniform": Uniform()}


def test_it_is_about_a_quarter_of_its_teacher(checkpoint, selectors):
    own = sum(p.numel() for p in checkpoint.family.selector.parameters())
    assert own <= 0.27 * checkpoint.model.num_parameters()
    assert (CHECKPOINTS / checkpoint.folder.name / "selector" / "model.safetensors").stat().st_size < 2e6


def questions(checkpoint, units, videos=34):
    for path, rows in groupby(documents(units, videos), video_path):
        video = checkpoint.video(path)
        for row in rows:
            prompt = checkpoint.prompt(video, row["question"])
            yield row, prompt, row["unit"] * checkpoint.unit_tokens + checkpoint.quadrants[row["quadrant"]]


def test_it_ranks_as_its_teacher_at_training_length(checkpoint, selectors):
    """Rank correlation, and the needle's Recall@K (paper, section 3.1): K is the number of its tokens, one."""
    correlations, recall = [], {"flexselect": 0, "lite": 0}
    for _, prompt, needle in questions(checkpoint, TRAINING_UNITS):
        columns = prompt.visual.nonzero().squeeze(-1)
        scores = {}
        for name in recall:
            keep, scores[name] = selectors[name](prompt, columns, [torch.ones_like(columns).bool()], [1])
            recall[name] += bool(keep[needle])
        correlations.append(float(rank_correlation(scores["lite"], scores["flexselect"])))
    number = len(correlations)
    assert number == 204
    assert sum(correlations) / number >= 0.8
    assert recall["lite"] / number >= recall["flexselect"] / number - 0.03


def test_it_answers_at_32_times_that_length(checkpoint, selectors):
    preset = checkpoint.model.config.flexselect
    right = dict.fromkeys(selectors, 0)
    for row, prompt, _ in questions(checkpoint, LONG_UNITS, videos=12):
        for name, selector in selectors.items():
            select = FlexSelect(selector, preset["token_budget"], preset["max_frames_per_set"], round_budget=False)
            (new,) = checkpoint.family.generate([select(prompt).prompt], max_new_tokens=1, do_sample=False)
            right[name] += answers_shape(checkpoint.tokenizer.decode(new, skip_special_tokens=True), row["shape"])
    accuracy = {name: count / 72 for name, count in right.items()}
    assert accuracy["lite"] >= accuracy["flexselect"] - 0.08
    assert accuracy["lite"] >= accuracy["uniform"] + 0.30
