"""What the needle models and FlexSelect are held to: 204 questions at training length, 102 about long videos.

The same prompt is answered with each selector, so videos are decoded once for all of them, and encoded once a question;
the lmms-eval command asks the same questions in `make demo`.
"""

from __future__ import annotations

from itertools import groupby

import pytest

from lmms_flexselect import FlexSelect, Uniform
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path

pytestmark = pytest.mark.benchmark

TRAINING_UNITS, LONG_UNITS = 16, 512


def ask_all(checkpoint, units, selectors, videos=34):
    """Rows of the benchmark, with each selector's answer to them, and whether it kept the needle's token."""
    preset = checkpoint.model.config.flexselect
    rows = documents(units, videos)
    assert len(rows) == 6 * videos
    asked = []
    for path, of_video in groupby(rows, video_path):
        video = checkpoint.video(path)
        for row in of_video:
            prompt = checkpoint.prompt(video, row["question"])
            assert prompt.grids == [(units, *checkpoint.grid)]
            assert int(prompt.visual.sum()) == units * checkpoint.unit_tokens
            needle = row["unit"] * checkpoint.unit_tokens + checkpoint.quadrants[row["quadrant"]]
            answers, kept = {}, {}
            for name, selector in selectors.items():
                select = FlexSelect(selector, preset["token_budget"], preset["max_frames_per_set"], round_budget=False)
                selection = select(prompt)
                (new,) = checkpoint.family.generate([selection.prompt], max_new_tokens=1, do_sample=False)
                answers[name] = checkpoint.tokenizer.decode(new, skip_special_tokens=True)
                kept[name] = bool(selection.visual_kept[needle])
            asked.append((row, answers, kept))
    return asked


def share(outcomes):
    outcomes = list(outcomes)
    return sum(outcomes) / len(outcomes)


def accuracy(asked, name):
    return share(answers_shape(answers[name], row["shape"]) for row, answers, _ in asked)


def test_all_tokens_at_training_length(checkpoint):
    assert accuracy(ask_all(checkpoint, TRAINING_UNITS, {"none": None}), "none") >= 0.95


@pytest.fixture(scope="module")
def long_videos(checkpoint):
    layer = checkpoint.model.config.flexselect["reference_layer"]
    selectors = {"none": None, "uniform": Uniform(), "flexselect": checkpoint.family.reference_layer(layer)}
    return ask_all(checkpoint, LONG_UNITS, selectors, videos=17)


def test_flexselect_answers_at_32_times_that_length(long_videos):
    assert accuracy(long_videos, "flexselect") >= 0.90


def test_it_beats_all_tokens_and_uniform_ones(long_videos):
    reference = accuracy(long_videos, "flexselect")
    assert reference - accuracy(long_videos, "none") >= 0.30
    assert reference - accuracy(long_videos, "uniform") >= 0.50


def test_the_needle_is_kept(long_videos):
    assert share(kept["flexselect"] for _, _, kept in long_videos) >= 0.95


def test_all_tokens_fail_by_answering_wrong_not_by_falling_silent(long_videos):
    """Or the comparison would say something of the form of the answer, and nothing of the video's length."""
    assert share(bool(answers["none"].strip()) for _, answers, _ in long_videos) >= 0.9
