"""From scores and a token budget to a keep mask: plain tensor functions that know no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.runtime.memory import to_device

REMAINDERS = ("spread", "drop")


def round_up(budget: int, unit: int) -> int:
    """The smallest multiple of `unit` (tokens a frame costs) that is no smaller than `budget`."""
    return -(-budget // unit) * unit


def share_budget(budget: int, sizes: Sequence[int]) -> list[int]:
    """Split a token budget over several videos in proportion to their visual tokens.

    The shares add up to `budget` exactly: what rounding down leaves goes to the largest fractions, ties to the
    earlier video. However short a video is beside the others, it gets one token, from the largest share.

    Raises
    ------
    OptionError
        If there are more videos than tokens.
    """
    if budget < len(sizes):
        raise OptionError(f"token_budget={budget}: the prompt has {len(sizes)} videos, so give at least {len(sizes)}")
    total = sum(sizes)
    shares = [budget * size // total for size in sizes]
    by_fraction = sorted(range(len(sizes)), key=lambda i: (-(budget * sizes[i] % total), i))
    for i in by_fraction[: budget - sum(shares)]:
        shares[i] += 1
    while min(shares) < 1:
        shares[shares.index(min(shares))] += 1
        shares[shares.index(max(shares))] -= 1
    return shares


def set_quotas(budget: int, set_sizes: Sequence[int], remainder: str = "spread") -> list[int]:
    """How many tokens each frame set may keep.

    Every set gets ``budget // G``, never more than it has (algorithm.md, section 3). What the division leaves is
    handed to the first sets, one token each (``remainder="spread"``), or dropped as the reference code does
    (``"drop"``).

    Parameters
    ----------
    budget
        Tokens to keep of one video.
    set_sizes
        Visual tokens of each of the ``G`` frame sets.
    remainder
        ``"spread"`` or ``"drop"``.

    Raises
    ------
    OptionError
        If the budget is smaller than the number of sets, so that a set would keep nothing.
    """
    if remainder not in REMAINDERS:
        raise OptionError(f"budget_remainder={remainder!r}: must be one of {', '.join(REMAINDERS)}")
    num_sets = len(set_sizes)
    if budget < num_sets:
        raise OptionError(
            f"token_budget={budget} is smaller than the number of frame sets ({num_sets}); "
            f"give at least {num_sets} tokens, or raise max_frames_per_set"
        )
    each, left = divmod(budget, num_sets)
    spread = left if remainder == "spread" else 0
    return [min(each + (g < spread), size) for g, size in enumerate(set_sizes)]


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mark the `k` highest scores; of equal scores the lower index wins.

    Parameters
    ----------
    scores
        ``(tokens,)`` float32.
    k
        Between 0 and ``tokens``.

    Returns
    -------
    Tensor
        ``(tokens,)`` bool on the CPU with exactly `k` true entries.

    Raises
    ------
    FlexSelectError
        If a score is not finite: ranking NaNs would keep arbitrary tokens and nobody would notice.
    """
    return best_of_sets(scores, [torch.arange(len(scores))], [k])


def best_of_sets(scores: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]) -> Tensor:
    """Mark the highest scores of each frame set; of equal scores the lower index wins.

    All sets are ranked at once where the scores are, and the result is read back once.

    Parameters
    ----------
    scores
        ``(tokens,)`` float32 on any device.
    sets
        Indices ``(tokens of the set,)`` int64 into `scores`, ascending; no token is in two of them.
    quotas
        How many tokens of each set are marked, no more than it has.

    Returns
    -------
    Tensor
        ``(tokens,)`` bool on the CPU.

    Raises
    ------
    FlexSelectError
        If a score is not finite.
    """
    order, sizes = torch.cat(list(sets)), [len(members) for members in sets]
    in_order = scores[to_device(order, scores.device)]
    of_sets = nn.utils.rnn.pad_sequence(list(in_order.split(sizes)), batch_first=True, padding_value=float("-inf"))
    quota = to_device(torch.tensor(list(quotas)), scores.device)[:, None]
    best = of_sets.topk(max(1, *quotas), dim=1).values
    # The lowest score that stays, and how many of those equal to it do.
    lowest = best.gather(1, (quota - 1).clamp(min=0)).masked_fill(quota == 0, float("inf"))
    above, equal = of_sets > lowest, of_sets == lowest
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= quota - above.sum(1, keepdim=True)))
    in_order_chosen = torch.cat([row[:size] for row, size in zip(chosen, sizes, strict=True)])
    # The one time that the CPU waits for the GPU.
    result = torch.cat([in_order_chosen, torch.isfinite(scores).all()[None]]).cpu()
    if not bool(result[-1]):
        raise FlexSelectError("relevance scores are not finite; the model overflows in this dtype (try dtype=bfloat16)")
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[order] = result[:-1]
    return keep


def evenly_spaced_mask(tokens: int, k: int) -> Tensor:
    """Mark `k` of `tokens` places, evenly spaced from the first to the last; ``(tokens,)`` bool.

    Whole-number arithmetic: place ``i`` is ``floor(i * (tokens - 1) / (k - 1))``, so no two coincide for
    ``k <= tokens``.
    """
    places = torch.arange(k) * (tokens - 1) // max(k - 1, 1)
    keep = torch.zeros(tokens, dtype=torch.bool)
    keep[places] = True
    return keep


def random_mask(tokens: int, k: int, generator: torch.Generator) -> Tensor:
    """Mark `k` of `tokens` places, every subset as likely as any other; ``(tokens,)`` bool, on the CPU."""
    keep = torch.zeros(tokens, dtype=torch.bool)
    keep[torch.randperm(tokens, generator=generator)[:k]] = True
    return keep
