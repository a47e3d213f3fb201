"""Differentiable ranks: by projection onto the permutahedron in O(n log n), and by pairwise sigmoids in O(n²).

The first are those of Blondel, Teboul, Berthet and Djolonga, "Fast Differentiable Sorting and Ranking" (ICML 2020),
with quadratic regularisation; the second are the FlexSelect reference code's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmms_flexselect.errors import FlexSelectError, OptionError

_CHUNK_ELEMENTS = 2**18  # of the pairwise differences held at once: 1 MB in float32, which stays in a cache


def soft_rank(values: Tensor, strength: float) -> Tensor:
    """Ranks from 1 (smallest value) to ``tokens`` (largest) that move with the values.

    The point of the permutahedron, the convex hull of all orders of ``1 .. tokens``, nearest to ``values / strength``.
    A value whose neighbours are all further away than `strength` has its ordinary rank, and no gradient. Values that
    crowd closer than that form a block: it shares the places it covers, as far apart as ``values / strength`` are.

    Parameters
    ----------
    values
        ``(..., tokens)``, any float dtype and device; one ranking per row. Zero tokens or rows are allowed.
    strength
        Positive, in the units of `values`. Towards 0 the ranks become hard (equal values share the mean of their
        places), towards infinity all become the mean rank.

    Returns
    -------
    Tensor
        ``(..., tokens)`` on the device of `values`, float64 if they are, else float32. Differentiable once.

    Raises
    ------
    OptionError
        If `strength` is not a positive number.
    FlexSelectError
        If a value is not finite.
    """
    if not (strength > 0 and math.isfinite(strength)):
        raise OptionError(f"strength={strength}: soft ranks need a positive number")
    return _SoftRank.apply(_wide_and_finite(values), float(strength))


def pairwise_rank(values: Tensor, temperature: float) -> Tensor:
    """Soft ranks ``0.5 + sum_j sigmoid((x_i - x_j) / temperature)``, from 1 to ``tokens``.

    The reference subtracts 0.5 instead, so that ranks begin at 0; no correlation sees that. The differences are made
    in slices, in the backward pass again, so memory stays linear in the tokens.

    Parameters
    ----------
    values
        ``(..., tokens)``.
    temperature
        Positive, in the units of `values`.

    Returns
    -------
    Tensor
        ``(..., tokens)`` float32 (float64 for float64); differentiable once.

    Raises
    ------
    OptionError
        If `temperature` is not a positive number.
    FlexSelectError
        If a value is not finite.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise OptionError(f"temperature={temperature}: pairwise ranks need a positive number")
    return _PairwiseRank.apply(_wide_and_finite(values), float(temperature))


def _wide_and_finite(values: Tensor) -> Tensor:
    if bad := int((~torch.isfinite(values)).sum()):
        raise FlexSelectError(f"{bad} of {values.numel()} values to rank are not finite")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _block_means(rows: NDArray[np.float64], starts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Each entry of `rows` replaced by the mean of its block; blocks begin at `starts` of the flattened rows."""
    sizes = np.diff(starts, append=rows.size)
    return np.repeat(np.add.reduceat(rows.ravel(), starts) / sizes, sizes).reshape(rows.shape)


def _host_rows(values: Tensor) -> NDArray[np.float64]:
    # On the host also where the values are on a GPU: pooling is sequential, and sums there would depend on chance.
    return values.detach().reshape(-1, values.shape[-1]).cpu().numpy().astype(np.float64)


class _SoftRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength, ctx.blocks = strength, None
        if values.numel() == 0:
            return values.clone()
        tokens = values.shape[-1]
        rows = _host_rows(values)
        order = np.argsort(rows, axis=-1)
        ascending = np.take_along_axis(rows, order, -1)
        places = np.arange(1.0, tokens + 1)
        starts = np.concatenate(
            [isotonic_regression(row - strength * places).blocks[:-1] + tokens * r for r, row in enumerate(ascending)]
        )
        # From the blocks, rather than as `values / strength` minus the regression: that difference of large numbers
        # loses the ranks where the strength is tiny. A block of one has exactly its place.
        ranks = _block_means(np.broadcast_to(places, rows.shape), starts)
        ranks += (ascending - _block_means(ascending, starts)) / strength
        ctx.blocks = order, starts
        return _unsorted(ranks, order, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.blocks is None:
            return grad.clone(), None
        order, starts = ctx.blocks
        # Inside a block, ranks are the values minus the block's mean; a projection, so its own transpose.
        ascending = np.take_along_axis(_host_rows(grad), order, -1)
        inside = (ascending - _block_means(ascending, starts)) / ctx.strength
        return _unsorted(inside, order, grad), None


def _unsorted(ascending: NDArray[np.float64], order: NDArray[np.intp], like: Tensor) -> Tensor:
    """`ascending` in the places that `order` took it from, with shape, dtype and device of `like`."""
    rows = np.empty_like(ascending)
    np.put_along_axis(rows, order, ascending, -1)
    return torch.from_numpy(rows).to(dtype=like.dtype, device=like.device).reshape(like.shape)


class _PairwiseRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.temperature = temperature
        ranks = torch.empty_like(values)
        for part, differences in _differences(values, temperature):
            ranks[..., part] = differences.sigmoid_().sum(-1) + 0.5
        return ranks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        result = torch.empty_like(values)
        for part, differences in _differences(values, ctx.temperature):
            # The slope is even, so x_i takes as much from rank i as it gives to rank j: sum_j slope_ij (g_i - g_j).
            upper = differences.sigmoid_()
            slopes = upper.mul_(1 - upper)
            result[..., part] = slopes.mul_(grad[..., part, None] - grad[..., None, :]).sum(-1) / ctx.temperature
        return result, None


def _differences(values: Tensor, temperature: float) -> Any:
    """Slices of the tokens, and ``(..., slice, tokens)`` their differences to all tokens over the temperature."""
    tokens = values.shape[-1]
    rows = max(1, _CHUNK_ELEMENTS // max(1, values.numel()))
    for start in range(0, tokens, rows):
        part = slice(start, min(start + rows, tokens))
        yield part, (values[..., part, None] - values[..., None, :]).div_(temperature)
