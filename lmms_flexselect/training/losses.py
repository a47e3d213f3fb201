"""How far a student's order of visual tokens is from its teacher's: losses, and metrics without gradients.

Every function takes scores of shape ``(tokens,)`` or ``(batch, tokens)``, any float dtype. A loss is a scalar, the mean
over the batch; the teacher's scores get no gradient. Scores that are not finite, or do not fit together, are a
`FlexSelectError`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.method.selection import top_k_mask
from lmms_flexselect.training.soft_rank import pairwise_rank, soft_rank

_TINY = torch.finfo(torch.float32).tiny
_LEAST_SPREAD = 1e-3  # logarithms that spread less are near enough equal: do not magnify their noise, or its gradient
_LEAST_RANK_SPREAD = 1e-6  # the same for ranks, as a share of the number of tokens


def standardised_log(scores: Tensor, eps: float = _TINY) -> Tensor:
    """Logarithm of attention relevance scores, with mean 0 and (population) standard deviation 1 in every row.

    Attention weights are positive, sum to at most 1 and differ by orders of magnitude, most of them near 0; on a
    logarithmic, common scale one strength of `soft_rank` fits every prompt.

    Parameters
    ----------
    scores
        ``(..., tokens)``.
    eps
        Smaller scores count as this much, and get no gradient: float32 attention may underflow to 0.

    Returns
    -------
    Tensor
        ``(..., tokens)`` float32 (float64 for float64). Zeros where all scores of a row are equal, with a finite
        gradient; logarithms with a standard deviation below 0.001 are divided by 0.001.
    """
    _check(scores)
    logs = scores.double().clamp_min(eps).log()
    logs = logs - logs[..., :1].detach()  # changes nothing below, but makes equal scores exactly 0
    logs = logs - logs.mean(-1, keepdim=True)
    spread = logs.square().mean(-1, keepdim=True).clamp_min(_LEAST_SPREAD**2).sqrt()
    return (logs / spread).to(_at_least_float32(scores))


def hard_rank(scores: Tensor) -> Tensor:
    """Ranks from 1 (lowest score) to ``tokens``; equal scores share the mean of their places, Spearman's convention.

    Returns
    -------
    Tensor
        ``(..., tokens)`` float32 (float64 for float64), without a gradient.
    """
    _check(scores)
    wide = scores.detach().to(_at_least_float32(scores)).contiguous()
    ascending = wide.sort(-1).values
    lower = torch.searchsorted(ascending, wide)
    upper = torch.searchsorted(ascending, wide, right=True)
    return (lower + upper + 1).to(wide.dtype) / 2


def spearman_loss(student_scores: Tensor, teacher_scores: Tensor, strength: float = 1.5) -> Tensor:
    """1 - Pearson correlation of the student's soft ranks with the teacher's hard ranks (paper, equations 3 and 4).

    The soft ranks are those of the student's `standardised_log`: on raw scores the strength would fit no prompt.

    Parameters
    ----------
    student_scores, teacher_scores
        ``(tokens,)`` or ``(batch, tokens)``.
    strength
        Divided by ``tokens``, as distances between neighbours are, it is the strength of `soft_rank`. Where the density
        of the standardised logarithms exceeds ``1 / strength``, neighbours are closer than that on average and large
        blocks form; below, small ones do by chance. A normal distribution's densest part has 0.4. At 1.5 about 0.6 of
        the soft ranks carry a gradient and they correlate with the hard ranks by more than 0.999, on attention and on
        tails far heavier than attention's; at 2.7 the latter fall to 0.99 (benchmarks/soft_rank.py).

    Returns
    -------
    Tensor
        Scalar, float32 (float64 for float64), from 0 (same order) to 2; 1 where either has no order at all.
    """
    _check(student_scores, teacher_scores)
    tokens = student_scores.shape[-1]
    ranks = soft_rank(standardised_log(student_scores), strength / tokens)
    return (1 - _correlation(ranks, hard_rank(teacher_scores))).mean().to(_at_least_float32(student_scores))


def pairwise_loss(student_scores: Tensor, teacher_scores: Tensor, temperature: float = 1e-4) -> Tensor:
    """`spearman_loss` in the form of the reference code: ranks by pairwise sigmoids of the raw scores.

    O(tokens²) in time, but not in memory.

    Parameters
    ----------
    student_scores, teacher_scores
        ``(tokens,)`` or ``(batch, tokens)``.
    temperature
        See `pairwise_rank`; the reference's is 1e-4.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 for float64).
    """
    _check(student_scores, teacher_scores)
    ranks = pairwise_rank(student_scores, temperature)
    return (1 - _correlation(ranks, hard_rank(teacher_scores))).mean().to(_at_least_float32(student_scores))


def l1_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Mean absolute difference of the standardised logarithms.

    Ours, not the paper's: it asks for more than the order, is the cheapest, and every token always has a gradient.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 for float64).
    """
    _check(student_scores, teacher_scores)
    return (standardised_log(student_scores) - standardised_log(teacher_scores.detach())).abs().mean()


def spearman_l2_loss(student_scores: Tensor, teacher_scores: Tensor, strength: float = 1.5) -> Tensor:
    """`spearman_loss` plus the mean squared difference of the `standardised_log` scores; ours, not the paper's.

    The order of a hundred tokens hardly changes with which of its first few is the first; the distances between them
    do. For selections of one or two tokens a frame set, that is all that matters.
    """
    _check(student_scores, teacher_scores)
    difference = standardised_log(student_scores) - standardised_log(teacher_scores).detach()
    return spearman_loss(student_scores, teacher_scores, strength) + difference.square().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spearman": spearman_loss,
    "pairwise": pairwise_loss,
    "l1": l1_loss,
    "spearman_l2": spearman_l2_loss,
}


def rank_correlation(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Spearman's rank correlation, ``()`` or ``(batch,)`` float64, without a gradient; 0 where one has no order."""
    _check(student_scores, teacher_scores)
    return _correlation(hard_rank(student_scores), hard_rank(teacher_scores))


def top_k_overlap(student_scores: Tensor, teacher_scores: Tensor, k: int) -> Tensor:
    """Share of the teacher's `k` best tokens among the student's `k` best; of equal scores the lower index is better.

    Parameters
    ----------
    student_scores, teacher_scores
        ``(tokens,)`` or ``(batch, tokens)``.
    k
        At least 1; more than there are tokens means all of them.

    Returns
    -------
    Tensor
        ``()`` or ``(batch,)`` float64, without a gradient.
    """
    if k < 1:
        raise OptionError(f"k={k}: must be at least 1")
    _check(student_scores, teacher_scores)
    if student_scores.ndim > 1:
        rows = zip(student_scores, teacher_scores, strict=True)
        return torch.stack([top_k_overlap(student, teacher, k) for student, teacher in rows])
    k = min(k, len(student_scores))
    both = top_k_mask(student_scores.detach(), k) & top_k_mask(teacher_scores.detach(), k)
    return both.sum().double() / k


def _check(scores: Tensor, teacher_scores: Tensor | None = None) -> None:
    if teacher_scores is not None and scores.shape != teacher_scores.shape:
        student, teacher = tuple(scores.shape), tuple(teacher_scores.shape)
        raise FlexSelectError(f"the student's scores have shape {student}, the teacher's {teacher}")
    if scores.numel() == 0:
        raise FlexSelectError("there are no scores to rank")
    for whose, these in (("student's " if teacher_scores is not None else "", scores), ("teacher's ", teacher_scores)):
        if these is not None and (bad := int((~torch.isfinite(these)).sum())):
            raise FlexSelectError(f"{bad} of the {whose}{these.numel()} scores are not finite")


def _at_least_float32(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)


def _correlation(ranks: Tensor, others: Tensor) -> Tensor:
    """Pearson's, over the last axis, in float64; 0 where either is constant, with a finite gradient."""
    units = []
    for each in (ranks.double(), others.double()):
        centred = each - each.mean(-1, keepdim=True)
        least = (_LEAST_RANK_SPREAD * each.shape[-1]) ** 2
        units.append(centred / centred.square().mean(-1, keepdim=True).clamp_min(least).sqrt())
    return (units[0] * units[1]).mean(-1)
