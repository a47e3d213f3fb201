"""The method as a whole, on random Qwen2.5-VL weights, against a plain oracle."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lmms_flexselect import FlexSelect, Qwen2_5_VL, Random, Uniform
from lmms_flexselect.errors import OptionError
from tests.support.oracle import Oracle, share
from tests.support.random_models import Part, qwen2_5_vl, video_inputs

LAYER = 2
UNIT = (2, 3)
NEW_TOKENS = 5


@cache
def family(seed):
    return Qwen2_5_VL(qwen2_5_vl(seed))


@cache
def in_float64(seed):
    return qwen2_5_vl(seed, attention="eager").double()


def assert_as_the_oracle_says(seed, row, seconds, budget, at_most, reduction="max", remainder="spread", rounded=True):
    inputs = video_inputs([row], seconds, seed=seed)
    oracle = Oracle(in_float64(seed), LAYER, reduction, budget, at_most, remainder, rounded)
    wanted = oracle(row, inputs, seconds, NEW_TOKENS)
    assert min(wanted.score_margin, wanted.logit_margin) > 1e-4, "rounding decides this case: choose another seed"

    (prompt,) = family(seed).prompts(inputs)
    selector = family(seed).reference_layer(LAYER, reduction)
    selection = FlexSelect(selector, budget, at_most, remainder, rounded)(prompt)
    assert selection.frame_set.tolist() == wanted.frame_set
    scores = torch.tensor(wanted.scores, dtype=torch.float64)
    torch.testing.assert_close(selection.scores.double(), scores, rtol=1e-5, atol=0, equal_nan=True)
    assert selection.visual_kept.nonzero().flatten().tolist() == wanted.kept
    assert [tuple(p) for p in selection.prompt.position_ids.T.tolist()] == wanted.positions
    torch.testing.assert_close(selection.prompt.inputs_embeds.double(), wanted.embeds, rtol=0, atol=1e-4)
    answer = family(seed).generate([selection.prompt], max_new_tokens=NEW_TOKENS)[0]
    assert answer.tolist() == wanted.tokens
    return selection


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(("budget", "at_most"), [(5, 16), (33, 16), (30, 64)])
@pytest.mark.parametrize("units", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("seed", [0, 2])
def test_one_video(seed, units, budget, at_most, reduction):
    selection = assert_as_the_oracle_says(seed, [4, ("video", (units, *UNIT)), 6], [1.5], budget, at_most, reduction)
    assert selection.kept_tokens == min(-(-budget // 6) * 6, 6 * units)


@pytest.mark.parametrize(("remainder", "rounded"), [("drop", True), ("drop", False), ("spread", False)])
def test_other_ways_with_the_remainder(remainder, rounded):
    row: list[Part] = [4, ("video", (20, *UNIT)), 6]
    selection = assert_as_the_oracle_says(0, row, [1.5], 35, 7, "max", remainder, rounded)
    assert selection.kept_tokens == {("drop", True): 36, ("drop", False): 33, ("spread", False): 35}[remainder, rounded]


SEVERAL: dict[str, list[Part]] = {
    "two of one size": [3, ("video", (9, 2, 3)), 2, ("video", (9, 2, 3)), 5],
    "other lengths and frame sizes": [3, ("video", (12, 2, 3)), 2, ("video", (5, 1, 4)), 5],
    "with an image": [3, ("image", (1, 4, 3)), 2, ("video", (7, 2, 2)), 1, ("video", (4, 3, 3)), 5],
    "nothing between": [("video", (7, 2, 2)), ("video", (6, 2, 2)), 5],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_videos(name):
    assert_as_the_oracle_says(1, SEVERAL[name], [1.5, 0.75], 20, 4)


def test_videos_share_the_budget_by_size():
    row: list[Part] = [3, ("video", (12, 2, 3)), 2, ("video", (5, 1, 4)), 5]
    (prompt,) = family(0).prompts(video_inputs([row], [1.0, 1.0]))
    selection = FlexSelect(Uniform(), token_budget=23, round_budget=False)(prompt)
    kept = [int(selection.visual_kept[selection.visual_video == v].sum()) for v in (0, 1)]
    assert kept == share(23, [72, 20]) == [18, 5]


@pytest.mark.parametrize("seconds", [1.0, 2.5])
@pytest.mark.parametrize("budget", [5 * 6, 5 * 6 - 5, 7040])
def test_a_budget_no_smaller_than_the_video_changes_nothing(seconds, budget):
    """Also where only rounding the budget up to whole frames makes it large enough."""
    inputs = video_inputs([[4, ("video", (5, *UNIT)), 6]], [seconds])
    (prompt,) = family(0).prompts(inputs)
    selection = FlexSelect(family(0).reference_layer(LAYER), budget, max_frames_per_set=2)(prompt)
    assert selection.prompt is prompt
    assert bool(selection.keep.all())
    assert selection.kept_tokens == selection.visual_tokens == 30
    assert bool(selection.scores.isnan().all())
    assert sorted(set(selection.frame_set.tolist())) == [0, 1, 2]


def test_no_selector_keeps_everything():
    (prompt,) = family(0).prompts(video_inputs([[4, ("video", (5, *UNIT)), 6]], [1.0]))
    assert FlexSelect(None, token_budget=1)(prompt).prompt is prompt


def test_a_prompt_without_video():
    (prompt,) = family(0).prompts(video_inputs([[8]]))
    selection = FlexSelect(family(0).reference_layer(LAYER), token_budget=1)(prompt)
    assert selection.prompt is prompt
    assert (selection.visual_tokens, selection.kept_tokens) == (0, 0)


@pytest.mark.parametrize("selector", ["flexselect", "uniform", "random"])
def test_selection_says_what_it_kept(selector):
    (prompt,) = family(0).prompts(video_inputs([[4, ("video", (9, *UNIT)), 6]], [1.0]))
    selectors = {"flexselect": family(0).reference_layer(LAYER), "uniform": Uniform(), "random": Random()}
    selection = FlexSelect(selectors[selector], token_budget=12, max_frames_per_set=4)(prompt)
    assert (selection.visual_tokens, selection.kept_tokens) == (54, 12)
    assert bool(selection.keep[~prompt.visual].all())
    assert torch.equal(selection.keep[selection.visual_columns], selection.visual_kept)
    assert torch.equal(selection.prompt.input_ids, prompt.input_ids[selection.keep])
    assert torch.equal(selection.prompt.position_ids, prompt.position_ids[:, selection.keep])
    per_frame = [int(selection.visual_kept[selection.visual_frame == f].sum()) for f in range(9)]
    assert selection.tokens_per_frame().tolist() == per_frame
    assert bool(selection.scores.isnan().any()) == (selector != "flexselect")


@pytest.mark.parametrize("budget", [0, -1])
def test_an_empty_budget_is_refused(budget):
    with pytest.raises(OptionError, match=f"^token_budget={budget}: must be at least 1"):
        FlexSelect(None, token_budget=budget)


def test_a_budget_below_one_token_a_frame_set_is_refused():
    (prompt,) = family(0).prompts(video_inputs([[4, ("video", (9, *UNIT)), 6]], [1.0]))
    with pytest.raises(OptionError, match=r"^token_budget=6 .*frame sets"):
        FlexSelect(Uniform(), token_budget=2, max_frames_per_set=1)(prompt)


def test_nothing_dropped_needs_no_budget():
    (prompt,) = family(0).prompts(video_inputs([[3, ("video", (3, 2, 2)), 2, ("video", (3, 2, 2)), 4]]))
    assert FlexSelect(None, token_budget=1)(prompt).prompt is prompt
