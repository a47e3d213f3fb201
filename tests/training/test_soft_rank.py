"""Soft ranks: against exact oracles, their gradient, both limits of the strength, and awkward input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.training.soft_rank import pairwise_rank, soft_rank


def values_of(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact_ranks(values, strength):
    """The projection by its minimax formula, in exact fractions; O(tokens³)."""
    exact = [Fraction(v) for v in values]
    order = sorted(range(len(exact)), key=lambda i: exact[i])
    ascending = [exact[i] / Fraction(strength) for i in order]
    sums = [Fraction(0)]
    for place, value in enumerate(ascending, 1):
        sums.append(sums[-1] + value - place)
    n, ranks = len(exact), [0.0] * len(exact)
    for i in range(n):
        regression = max(min((sums[b] - sums[a]) / (b - a) for b in range(i + 1, n + 1)) for a in range(i + 1))
        ranks[order[i]] = float(ascending[i] - regression)
    return torch.tensor(ranks, dtype=torch.float64)


def pooled_ranks(values, strength):
    """The same by pool-adjacent-violators on plain floats, for longer rows; also the blocks, as lists of indices."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks = []
    for place, i in enumerate(order, 1):
        blocks.append(([i], values[i] - strength * place, float(place)))
        while len(blocks) > 1 and blocks[-2][1] >= blocks[-1][1]:
            last, before = blocks.pop(), blocks.pop()
            a, b = len(before[0]), len(last[0])
            mean = (a * before[1] + b * last[1]) / (a + b)
            blocks.append((before[0] + last[0], mean, (a * before[2] + b * last[2]) / (a + b)))
    ranks = [0.0] * len(values)
    for members, _, at in blocks:
        middle = sum(values[i] for i in members) / len(members)
        for i in members:
            ranks[i] = at + (values[i] - middle) / strength
    return torch.tensor(ranks, dtype=torch.float64), [members for members, _, _ in blocks]


@pytest.mark.parametrize("strength", [1e-3, 0.03, 0.1, 0.5, 3.0])
def test_equal_to_the_exact_projection(strength):
    for seed, tokens in enumerate((2, 3, 7, 24)):
        values = values_of(tokens, seed=seed)
        torch.testing.assert_close(
            soft_rank(values, strength), exact_ranks(values.tolist(), strength), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize("strength", [1e-4, 1e-3, 2e-3, 1.0])
def test_equal_to_pooling_by_hand(strength):
    values = values_of(1500, seed=5)
    expected, _ = pooled_ranks(values.tolist(), strength)
    torch.testing.assert_close(soft_rank(values, strength), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("tokens", [2, 3, 4])
def test_is_the_nearest_point_of_the_permutahedron(tokens):
    """By a general solver, on the polytope's own inequalities: any k ranks add up to at least 1 + ... + k."""
    subsets = np.array([[s >> i & 1 for i in range(tokens)] for s in range(1, 2**tokens - 1)], dtype=float)
    sizes = subsets.sum(1)
    least = sizes * (sizes + 1) / 2
    for seed in range(4):
        target = 2 * values_of(tokens, seed=seed).numpy()
        solved = minimize(
            lambda p, target=target: ((p - target) ** 2).sum(),
            np.full(tokens, (tokens + 1) / 2),
            jac=lambda p, target=target: 2 * (p - target),
            constraints=[
                {"type": "ineq", "fun": lambda p: subsets @ p - least},
                {"type": "eq", "fun": lambda p: p.sum() - tokens * (tokens + 1) / 2},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        torch.testing.assert_close(
            soft_rank(torch.from_numpy(target), 1.0), torch.from_numpy(solved.x), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("strength", [0.02, 0.2, 2.0])
def test_gradcheck(strength):
    values = values_of(3, 12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_rank(v, strength), values, eps=1e-7, atol=1e-6)


def test_gradient_is_the_deviation_from_the_mean_of_the_block():
    values, weights = values_of(1500, seed=2).requires_grad_(), values_of(1500, seed=3)
    (soft_rank(values, 1e-3) * weights).sum().backward()
    _, blocks = pooled_ranks(values.tolist(), 1e-3)
    expected = torch.empty(1500, dtype=torch.float64)
    for block in blocks:
        expected[block] = (weights[block] - weights[block].mean()) / 1e-3
    assert 1 < max(map(len, blocks)) < 1500
    torch.testing.assert_close(values.grad, expected, atol=1e-9, rtol=1e-12)


def test_differentiable_once():
    values = values_of(5).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_rank(values, 1.0).square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_strength_gives_hard_ranks(dtype):
    values = values_of(1000, seed=1, dtype=dtype).requires_grad_()
    ranks = soft_rank(values, 1e-12)
    assert torch.equal(ranks, (values.argsort().argsort() + 1).to(dtype))  # not only nearly
    ranks.square().sum().backward()
    assert torch.equal(values.grad, torch.zeros(1000, dtype=dtype))


def test_huge_strength_gives_the_mean_rank():
    values = values_of(1000, seed=1).requires_grad_()
    ranks = soft_rank(values, 1e9)
    torch.testing.assert_close(ranks, torch.full((1000,), 500.5, dtype=torch.float64), atol=1e-6, rtol=0)
    ranks.square().sum().backward()
    assert torch.isfinite(values.grad).all()


def test_equal_values_share_their_places():
    values = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0, 2.0])
    for strength in (1e-30, 1e-6, 1e-3):
        assert soft_rank(values, strength).tolist() == [5.0, 1.0, 5.0, 2.5, 5.0, 2.5]
    assert soft_rank(torch.full((7,), 0.1), 1e-4).tolist() == [4.0] * 7


def test_rows_are_ranked_apart():
    values = values_of(2, 3, 40, seed=4).requires_grad_()
    weights = values_of(2, 3, 40, seed=5)
    ranks = soft_rank(values, 0.05)
    (ranks * weights).sum().backward()
    assert ranks.shape == values.shape
    for i in range(2):
        for j in range(3):
            row = values[i, j].detach().requires_grad_()
            (soft_rank(row, 0.05) * weights[i, j]).sum().backward()
            assert torch.equal(ranks[i, j], soft_rank(row, 0.05))
            assert torch.equal(values.grad[i, j], row.grad)


def test_strided_input():
    values = values_of(30, 4, seed=6)
    torch.testing.assert_close(soft_rank(values.T, 0.1), soft_rank(values.T.contiguous(), 0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    """Narrow input is widened before ranking: nothing but its own ties is lost, and its gradient has its dtype."""
    values = values_of(3000, seed=7).to(dtype).requires_grad_()
    ranks = soft_rank(values, 1e-3)
    assert ranks.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = soft_rank(values.detach().double(), 1e-3)
    torch.testing.assert_close(ranks.double(), expected, atol=2e-4 if dtype != torch.float64 else 0, rtol=0)
    ranks.square().sum().backward()
    assert values.grad.dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    values = values_of(2, 500, seed=8)
    here, there = values.clone().requires_grad_(), values.cuda().requires_grad_()
    for each in (here, there):
        soft_rank(each, 0.01).square().sum().backward()
    assert soft_rank(there, 0.01).device == there.device
    assert torch.equal(soft_rank(there, 0.01).cpu(), soft_rank(here, 0.01))
    assert torch.equal(there.grad.cpu(), here.grad)


def test_one_token_and_none():
    one = torch.tensor([7.0], requires_grad=True)
    assert soft_rank(one, 0.1).tolist() == [1.0]
    soft_rank(one, 0.1).sum().backward()
    assert one.grad.tolist() == [0.0]
    for shape in ((0,), (3, 0), (0, 5)):
        none = torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
        ranks = soft_rank(none, 0.1)
        assert ranks.shape == shape
        assert ranks.dtype == torch.float32
        ranks.sum().backward()
        assert none.grad.shape == shape


def test_many_tokens():
    """A square of them would not fit any memory."""
    values = values_of(300_000, seed=9, dtype=torch.float32).requires_grad_()
    ranks = soft_rank(values, 1.5 / 300_000)
    ranks[0].backward()
    assert float(ranks.detach().double().mean()) == pytest.approx(150_000.5)
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(bad):
    values = values_of(2, 5)
    values[1, 3] = bad
    with pytest.raises(FlexSelectError, match=r"^1 of 10 values to rank are not finite$"):
        soft_rank(values, 0.1)
    with pytest.raises(FlexSelectError, match=r"^1 of 10 values to rank are not finite$"):
        pairwise_rank(values, 0.1)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_strengths_without_a_meaning(strength):
    with pytest.raises(OptionError, match=r"^strength=.*positive"):
        soft_rank(values_of(5), strength)
    with pytest.raises(OptionError, match=r"^temperature=.*positive"):
        pairwise_rank(values_of(5), strength)


@pytest.mark.parametrize("chunk", [1, 700, 10**9])
@pytest.mark.parametrize("shape", [(53,), (2, 31)])
def test_pairwise_rank_in_slices(monkeypatch, shape, chunk):
    monkeypatch.setattr("lmms_flexselect.training.soft_rank._CHUNK_ELEMENTS", chunk)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    ranks = pairwise_rank(values, 0.3)
    expected = ((values[..., :, None] - values[..., None, :]) / 0.3).sigmoid().sum(-1) + 0.5
    torch.testing.assert_close(ranks, expected, atol=1e-12, rtol=0)
    weights = torch.arange(ranks.numel(), dtype=torch.float64).view(shape).sin()
    gradients = [torch.autograd.grad((r * weights).sum(), values)[0] for r in (ranks, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda v: pairwise_rank(v, 0.3), values)
