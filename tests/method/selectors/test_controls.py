"""The controls: right amount, no look at the question, and the same draw wherever a prompt turns up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmms_flexselect import Qwen2_5_VL, Random, Uniform
from tests.support.random_models import Part, qwen2_5_vl, video_inputs

QUOTAS = [5, 4]


@pytest.fixture(scope="module")
def prompts():
    """Two prompts with one video each, and one with two."""
    rows: list[list[Part]] = [[3, ("video", (6, 2, 2)), 5], [3, ("video", (6, 2, 2)), 6]]
    two_videos: list[Part] = [3, ("video", (6, 2, 2)), 2, ("video", (6, 2, 2)), 5]
    return Qwen2_5_VL(qwen2_5_vl()).prompts(video_inputs([*rows, two_videos]))


def kept(selector, prompt, video=0):
    columns = (prompt.video == video).nonzero().squeeze(-1)
    sets = [prompt.frame[columns] % 2 == g for g in range(2)]
    keep, scores = selector(prompt, columns, sets, QUOTAS)
    assert scores is None
    assert keep.dtype == torch.bool
    assert len(keep) == 24
    return keep.nonzero().flatten().tolist()


def test_uniform(prompts):
    # Nine of 24 places, in steps of 23 / 8, rounded down.
    assert kept(Uniform(), prompts[0]) == [0, 2, 5, 8, 11, 14, 17, 20, 23]
    assert kept(Uniform(), prompts[1]) == kept(Uniform(), prompts[0])


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_random_keeps_as_many_as_the_sets_together(prompts, seed):
    assert len(kept(Random(seed), prompts[0])) == sum(QUOTAS)


def test_random_does_not_depend_on_what_came_before(prompts):
    first = kept(Random(3), prompts[0])
    selector = Random(3)
    kept(selector, prompts[1])
    torch.manual_seed(99)
    assert kept(selector, prompts[0]) == first


def test_random_does_not_look_at_the_video(prompts):
    blank = replace(prompts[0], inputs_embeds=torch.zeros_like(prompts[0].inputs_embeds))
    assert kept(Random(3), blank) == kept(Random(3), prompts[0])


def test_random_draws_anew_for_another_seed_prompt_and_video(prompts):
    ids = prompts[0].input_ids
    draws = [
        kept(Random(0), replace(prompts[0], input_ids=torch.cat([ids[:-2], ids[-2:].flip(0)]))),  # in another order
        kept(Random(0), prompts[0]),
        kept(Random(1), prompts[0]),
        kept(Random(0), prompts[1]),
        kept(Random(0), prompts[2], video=0),
        kept(Random(0), prompts[2], video=1),
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)
