"""Budgets, quotas and masks."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.method.selection import (
    evenly_spaced_mask,
    random_mask,
    round_up,
    set_quotas,
    share_budget,
    top_k_mask,
)
from tests.support import oracle


@pytest.mark.parametrize(
    ("budget", "unit", "rounded"), [(7040, 209, 7106), (7106, 209, 7106), (1, 209, 209), (6720, 210, 6720)]
)
def test_a_budget_is_rounded_up_to_whole_frames(budget, unit, rounded):
    assert round_up(budget, unit) == rounded


@pytest.mark.parametrize(
    ("budget", "sizes", "remainder", "quotas"),
    [
        (6720, [64 * 210] * 8, "spread", [840] * 8),
        (7106, [64 * 209] * 8, "spread", [889] * 2 + [888] * 6),
        (7106, [64 * 209] * 8, "drop", [888] * 8),
        (3, [5, 5, 5], "spread", [1, 1, 1]),
        (5, [9, 9, 9], "drop", [1, 1, 1]),
        # A set keeps no more than it has, and what it cannot use is not handed on.
        (10, [2, 20], "spread", [2, 5]),
        (11, [20, 5], "spread", [6, 5]),
        (1000, [3, 4], "drop", [3, 4]),
    ],
)
def test_quotas(budget, sizes, remainder, quotas):
    assert set_quotas(budget, sizes, remainder) == quotas


@pytest.mark.parametrize("seed", range(5))
def test_spread_uses_the_whole_budget(seed):
    dice = random.Random(seed)
    sizes = [dice.randint(50, 60) for _ in range(dice.randint(1, 9))]
    budget = dice.randint(len(sizes), 50 * len(sizes))
    quotas = set_quotas(budget, sizes, "spread")
    assert sum(quotas) == budget
    assert quotas == sorted(quotas, reverse=True)
    assert max(quotas) - min(quotas) <= 1
    assert sum(set_quotas(budget, sizes, "drop")) == budget - budget % len(sizes)


def test_a_budget_below_one_token_a_set_is_refused():
    with pytest.raises(OptionError, match=r"^token_budget=7 .*\(8\); give at least 8 tokens.*max_frames_per_set$"):
        set_quotas(7, [100] * 8)


def test_an_unknown_remainder_is_refused():
    with pytest.raises(OptionError, match=r"^budget_remainder='keep': must be one of spread, drop$"):
        set_quotas(10, [5, 5], "keep")


@pytest.mark.parametrize("seed", range(20))
def test_videos_share_the_budget_by_size(seed):
    dice = random.Random(seed)
    sizes = [dice.randint(20, 900) for _ in range(dice.randint(1, 6))]
    budget = dice.randint(len(sizes) * 40, 5000)
    shares = share_budget(budget, sizes)
    assert shares == oracle.share(budget, sizes)
    assert sum(shares) == budget
    assert all(abs(s - budget * size / sum(sizes)) < 1 for s, size in zip(shares, sizes, strict=True))


def test_ties_in_sharing_go_to_the_earlier_video():
    assert share_budget(10, [4, 4, 4]) == [4, 3, 3]
    assert share_budget(11, [4, 4, 4]) == [4, 4, 3]
    assert share_budget(7040, [5]) == [7040]


def test_a_budget_that_leaves_a_video_with_nothing_is_refused():
    with pytest.raises(OptionError, match=r"^token_budget=2: .*3 videos"):
        share_budget(2, [5, 5, 5])


@pytest.mark.parametrize("seed", range(10))
def test_top_k_with_ties(seed):
    dice = random.Random(seed)
    scores = [dice.choice([0.0, 0.125, 0.5, 0.5000001]) for _ in range(dice.randint(1, 40))]
    for k in {0, 1, len(scores) // 2, len(scores)}:
        mask = top_k_mask(torch.tensor(scores), k)
        in_float32 = torch.tensor(scores).tolist()
        assert mask.nonzero().flatten().tolist() == oracle.top_k(in_float32, k)


def test_top_k_of_many_equal_scores_is_the_first_k():
    # An unstable sort shows itself only beyond the size of its small-array special case.
    assert top_k_mask(torch.full((13440,), 0.25), 888).nonzero().flatten().tolist() == list(range(888))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_numbers_are_refused(bad):
    with pytest.raises(FlexSelectError, match="not finite"):
        top_k_mask(torch.tensor([0.1, bad, 0.3]), 1)


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 13440])
def test_evenly_spaced(tokens):
    for k in {1, 2, 3, tokens // 2, tokens - 1, tokens}:
        if not 1 <= k <= tokens:
            continue
        places = evenly_spaced_mask(tokens, k).nonzero().flatten().tolist()
        assert len(places) == k
        assert places[0] == 0
        assert k == 1 or places[-1] == tokens - 1
        steps = {b - a for a, b in pairwise(places)}
        assert not steps or max(steps) - min(steps) <= 1


@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (10, 0), (10, 3), (10, 10), (13440, 7104)])
def test_random_keeps_exactly_k(tokens, k):
    mask = random_mask(tokens, k, torch.Generator().manual_seed(0))
    assert mask.shape == (tokens,)
    assert int(mask.sum()) == k


def test_random_favours_no_subset():
    generator = torch.Generator().manual_seed(0)
    draws = Counter(tuple(random_mask(5, 2, generator).nonzero().flatten().tolist()) for _ in range(4000))
    assert len(draws) == 10
    # 400 each are expected; five standard deviations are 95.
    assert all(abs(count - 400) < 95 for count in draws.values())


@pytest.mark.parametrize(("budget", "sizes"), [(7040, [98560, 4]), (500, [1000, 1]), (3, [900, 1, 1])])
def test_the_shortest_video_gets_a_token_too(budget, sizes):
    shares = share_budget(budget, sizes)
    assert sum(shares) == budget
    assert min(shares) >= 1
