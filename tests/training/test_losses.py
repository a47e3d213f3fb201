"""Ranking losses: against scipy and naive forms, why scores are transformed, and that a student learns by each."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.training.losses import (
    LOSSES,
    hard_rank,
    l1_loss,
    pairwise_loss,
    rank_correlation,
    spearman_l2_loss,
    spearman_loss,
    standardised_log,
    top_k_overlap,
)
from lmms_flexselect.training.soft_rank import pairwise_rank, soft_rank

ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
DEFAULT_STRENGTH = inspect.signature(spearman_loss).parameters["strength"].default


def attention(tokens, seed=0, dtype=torch.float32):
    """Like relevance scores: maxima of softmaxes over tokens, a few of which draw most of the attention."""
    random = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(tokens, generator=random) + torch.randn(8, tokens, generator=random, dtype=dtype)
    logits[:, torch.randperm(tokens, generator=random)[: tokens // 200]] += 7
    return logits.softmax(-1).amax(0)


def pearson(a, b):
    return np.corrcoef(a.detach().numpy().astype(float), b.detach().numpy().astype(float))[0, 1]


# --- the transform


def test_standardised_log():
    scores = attention(500, dtype=torch.float64)
    expected = stats.zscore(np.log(scores.numpy()))
    torch.testing.assert_close(standardised_log(scores), torch.from_numpy(expected), atol=1e-12, rtol=0)
    torch.testing.assert_close(standardised_log(scores * 1e-6), torch.from_numpy(expected), atol=1e-12, rtol=0)
    two = standardised_log(torch.stack([scores, scores.flip(0).sqrt()]))
    torch.testing.assert_close(two, torch.from_numpy(np.stack([expected, expected[::-1]])), atol=1e-12, rtol=0)


def test_standardised_log_gradient():
    scores = attention(40, dtype=torch.float64).view(2, 20).requires_grad_()
    assert torch.autograd.gradcheck(standardised_log, scores, eps=1e-9, atol=1e-5)


def test_standardised_log_of_scores_that_underflowed():
    scores = torch.tensor([0.0, 1e-45, 1e-3, 2e-3], requires_grad=True)
    logs = standardised_log(scores)
    assert logs[0] == logs[1] < logs[2] < logs[3]
    logs[2].backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0] == 0 != scores.grad[2]
    assert standardised_log(torch.tensor([1e-9, 1e-7, 1.0]), eps=1e-7)[:2].unique().numel() == 1


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1.0])
def test_standardised_log_of_equal_scores(value):
    scores = torch.full((13440,), value, requires_grad=True)
    logs = standardised_log(scores)
    assert torch.equal(logs, torch.zeros(13440))
    (logs * torch.arange(13440)).sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_noise_of_nearly_equal_scores_is_not_magnified():
    scores = 0.1 * (1 + 1e-7 * torch.randn(100, generator=torch.Generator().manual_seed(0)))
    assert float(standardised_log(scores).abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_have_at_least_float32(dtype):
    scores, wide = attention(50).to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    assert standardised_log(scores).dtype == hard_rank(scores).dtype == pairwise_rank(scores, 1e-4).dtype == wide
    exact = stats.zscore(np.log(scores.double()))  # of large logarithms, so float32 on the way would cost digits
    torch.testing.assert_close(standardised_log(scores).double(), torch.from_numpy(exact), atol=2e-7, rtol=0)
    for loss in LOSSES.values():
        student = attention(50, 1).to(dtype).requires_grad_()
        assert loss(student, scores).dtype == wide
        loss(student, scores).backward()
        assert student.grad.dtype == dtype


# --- ranks and the rank losses


def test_hard_rank():
    scores = torch.randint(0, 30, (3, 100), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(hard_rank(scores), torch.from_numpy(stats.rankdata(scores.float().numpy(), axis=-1)).float())
    assert torch.equal(hard_rank(scores.T), torch.from_numpy(stats.rankdata(scores.float().numpy().T, axis=-1)).float())
    assert not hard_rank(torch.rand(4, requires_grad=True)).requires_grad


def test_spearman_loss_without_softness_is_spearmans():
    student, teacher = attention(300, 1), attention(300, 2)
    teacher[:100] = teacher[0]  # ties
    expected = 1 - stats.spearmanr(student, teacher).statistic
    assert float(spearman_loss(student, teacher, strength=1e-9)) == pytest.approx(expected, abs=1e-7)


def test_spearman_loss_by_hand():
    """Soft ranks of the standardised logarithms, at the strength over the number of tokens."""
    student, teacher = attention(300, 1), attention(300, 2)
    ranks = soft_rank(torch.from_numpy(stats.zscore(np.log(student.double().numpy()))), 40 / 300)
    expected = 1 - pearson(ranks, torch.from_numpy(stats.rankdata(teacher.numpy())))
    assert float(spearman_loss(student, teacher, 40.0)) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - float(spearman_loss(student, teacher))) > 1e-3


@pytest.mark.parametrize("tokens", [500, 3000, 13440])
@pytest.mark.parametrize("heavy", [False, True], ids=["attention", "heavy tails"])
def test_the_default_strength_fits_any_number_of_tokens(tokens, heavy):
    scores = attention(tokens)
    if heavy:  # of the logarithms: Student's t distribution
        scores = torch.from_numpy(np.exp(stats.t(3).rvs(tokens, random_state=0).clip(-30, 30)))
    assert float(spearman_loss(scores, scores)) < 1e-3
    values = standardised_log(scores).requires_grad_()
    soft_rank(values, DEFAULT_STRENGTH / tokens).mul(attention(tokens, 1)).sum().backward()
    assert float((values.grad != 0).float().mean()) > 0.5
    student = scores.requires_grad_()
    spearman_loss(student, attention(tokens, 1)).backward()
    assert float((student.grad != 0).float().mean()) > 0.99  # through mean and standard deviation


def raw_spearman_loss(student, teacher):
    """`spearman_loss` without its transform."""
    ranks = soft_rank(student, DEFAULT_STRENGTH / len(student))
    return 1 - torch.corrcoef(torch.stack([ranks, hard_rank(teacher)]))[0, 1]


def test_raw_scores_are_pooled_whole():
    """Why scores are transformed: raw, all tokens are one block, and the best student is near the worst loss."""
    teacher = attention(13440)
    pooled = soft_rank(teacher, DEFAULT_STRENGTH / 13440)
    one_block = (teacher.double() - teacher.double().mean()) * 13440 / DEFAULT_STRENGTH + 13441 / 2
    torch.testing.assert_close(pooled.double(), one_block, atol=1e-3, rtol=0)
    assert float(((pooled - 13441 / 2).abs() < 134).float().mean()) > 0.98  # within a hundredth of the range
    assert float(raw_spearman_loss(teacher, teacher)) > 0.8
    assert float(spearman_loss(teacher, teacher)) < 1e-6


def test_raw_scores_leave_no_gradient_to_most_tokens():
    """Share of the gradient, in the logits, of the half with the lower scores; the pairwise form lies in between."""
    random = torch.Generator().manual_seed(1)
    for student, perfect in ((attention(2000, 1), 0.05), ((4 * torch.randn(2000, generator=random)).softmax(-1), 0.3)):
        share, best = {}, {}
        low = student < student.median()
        for loss in (raw_spearman_loss, pairwise_loss, spearman_loss):
            scores = student.clone().requires_grad_()
            loss(scores, attention(2000, 2)).backward()
            gradient = (scores * scores.grad).detach().abs()
            share[loss] = float(gradient[low].sum() / gradient.sum())
            best[loss] = float(loss(student, student))
        assert share[raw_spearman_loss] < 0.02 < 0.45 < share[spearman_loss]
        assert share[raw_spearman_loss] < share[pairwise_loss] < 0.25
        assert best[spearman_loss] < 1e-6 < perfect < best[pairwise_loss] < best[raw_spearman_loss]


def test_spearman_loss_does_not_see_the_scale_of_attention():
    """A prompt a thousand times as long has scores a thousandth as high."""
    student = attention(2000).requires_grad_()
    small = (student / 1024).detach().requires_grad_()
    values = [spearman_loss(each, attention(2000, 1)) for each in (student, small)]
    torch.testing.assert_close(*values)
    for value in values:
        value.backward()
    torch.testing.assert_close(small.grad / 1024, student.grad, rtol=1e-3, atol=1e-6)


# --- pairwise


def naive_pairwise_rank(values, temperature):
    return ((values[..., :, None] - values[..., None, :]) / temperature).sigmoid().sum(-1) + 0.5


def test_pairwise_loss_by_hand():
    student, teacher = attention(300, 1, torch.float64), attention(300, 2)
    for temperature in (1e-4, 1e-2):
        expected = 1 - pearson(naive_pairwise_rank(student, temperature), hard_rank(teacher))
        assert float(pairwise_loss(student, teacher, temperature)) == pytest.approx(expected, abs=1e-7)
    assert float(pairwise_loss(student, teacher)) == float(pairwise_loss(student, teacher, 1e-4))
    expected = 1 - stats.spearmanr(student, teacher).statistic
    assert float(pairwise_loss(student, teacher, 1e-12)) == pytest.approx(expected, abs=1e-7)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_no_square_is_ever_held(monkeypatch):
    monkeypatch.setattr("lmms_flexselect.training.soft_rank._CHUNK_ELEMENTS", 50_000)
    student, teacher = attention(1000, 1).requires_grad_(), attention(1000)
    with Largest() as largest:
        pairwise_loss(student, teacher).backward()
    assert 25_000 < largest.elements <= 50_000
    with Largest() as largest:
        spearman_loss(student, teacher).backward()
    assert largest.elements <= 1000
    two = torch.stack([student, student])
    with Largest() as largest:
        pairwise_loss(two, torch.stack([teacher, teacher])).backward()
    assert largest.elements <= 50_000


# --- all losses


def test_l1_loss():
    student, teacher = attention(300, 1), attention(300, 2)
    expected = np.abs(stats.zscore(np.log(student.double())) - stats.zscore(np.log(teacher.double()))).mean()
    assert float(l1_loss(student, teacher)) == pytest.approx(expected, abs=1e-6)


@ALL
def test_gradcheck(loss):
    student = attention(24, 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, attention(24, 2)), student, eps=1e-9, atol=1e-5)


@ALL
def test_a_batch_is_the_mean_of_its_rows(loss):
    student = torch.stack([attention(200, seed) for seed in range(3)]).requires_grad_()
    teacher = torch.stack([attention(200, seed) for seed in range(3, 6)])
    rows = torch.stack([loss(s, t) for s, t in zip(student, teacher, strict=True)])
    assert rows.unique().numel() == 3
    torch.testing.assert_close(loss(student, teacher), rows.mean())
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss(student, teacher), rows.mean())]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_spearman_l2_loss_by_hand():
    student, teacher = attention(300, 1), attention(300, 2)
    difference = stats.zscore(np.log(student.double().numpy())) - stats.zscore(np.log(teacher.double().numpy()))
    expected = float(spearman_loss(student, teacher)) + float(np.square(difference).mean())
    assert float(spearman_l2_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


@ALL
def test_best_and_worst(loss):
    """From one order to the opposite: of evenly spread logarithms ``abs(2 * z)`` is √3 on average, its square 4."""
    teacher = torch.linspace(-3, 3, 400).exp()
    same, turned = float(loss(teacher, teacher)), float(loss(1 / teacher, teacher))
    assert same == pytest.approx(0, abs=1e-4)
    assert turned == pytest.approx({l1_loss: 3**0.5, spearman_l2_loss: 2 + 4}.get(loss, 2.0), abs=1e-2)


@ALL
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = attention(50, 1).requires_grad_(), attention(50).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@ALL
def test_scores_without_an_order(loss):
    """Constant students and teachers give no NaN; a constant student is told where to go."""
    flat, sloped = torch.full((50,), 1e-3), attention(50)
    for student, teacher in ((flat, sloped), (sloped, flat), (flat, flat), (torch.zeros(50), sloped)):
        student = student.clone().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()
        of_ranks = loss not in (l1_loss, spearman_l2_loss)
        if of_ranks:
            assert float(value.detach()) == pytest.approx(1)
        if student[0] > 0 and student is not sloped and teacher is sloped and of_ranks:
            assert rank_correlation(-student.grad, teacher) > 0.99


@ALL
def test_one_token(loss):
    student = torch.tensor([0.3], requires_grad=True)
    loss(student, torch.tensor([0.1])).backward()
    assert student.grad.tolist() == [0.0]


@ALL
def test_bad_scores(loss):
    good, bad = attention(50), attention(50)
    bad[3] = float("nan")
    with pytest.raises(FlexSelectError, match=r"^1 of the student's 50 scores are not finite$"):
        loss(bad, good)
    with pytest.raises(FlexSelectError, match=r"^1 of the teacher's 50 scores are not finite$"):
        loss(good, bad)
    with pytest.raises(FlexSelectError, match=r"shape \(49,\), the teacher's \(50,\)$"):
        loss(good[1:], good)
    with pytest.raises(FlexSelectError, match="no scores"):
        loss(good[:0], good[:0])


@pytest.mark.parametrize("name", ["strength", "temperature"])
def test_options_without_a_meaning(name):
    loss = {"strength": spearman_loss, "temperature": pairwise_loss}[name]
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match=f"^{name}="):
            loss(attention(5), attention(5), **{name: value})


# --- metrics


def test_rank_correlation():
    student, teacher = attention(300, 1).requires_grad_(), attention(300, 2).round(decimals=3)
    expected = stats.spearmanr(student.detach(), teacher).statistic
    assert float(rank_correlation(student, teacher)) == pytest.approx(expected, abs=1e-12)
    assert not rank_correlation(student, teacher).requires_grad
    both = rank_correlation(torch.stack([student, teacher]), torch.stack([teacher, teacher]))
    assert both.tolist() == pytest.approx([expected, 1.0])
    assert float(rank_correlation(student, torch.ones(300))) == 0
    one_differs = torch.zeros(100_000)
    one_differs[7] = 1
    assert float(rank_correlation(one_differs, one_differs)) == pytest.approx(1)


def test_top_k_overlap():
    student = torch.tensor([5.0, 4, 3, 2, 1], requires_grad=True)
    teacher = torch.tensor([1.0, 2, 2, 2, 1])  # its best two are at 1 and 2, its best four at 0 to 3
    assert [float(top_k_overlap(student, teacher, k)) for k in (1, 2, 3, 4, 5, 9)] == [0, 0.5, 2 / 3, 1, 1, 1]
    assert not top_k_overlap(student, teacher, 2).requires_grad
    both = top_k_overlap(torch.stack([student, teacher]), torch.stack([teacher, teacher]), 2)
    assert both.tolist() == [0.5, 1.0]
    for k in (0, -1):
        with pytest.raises(OptionError, match=f"^k={k}: "):
            top_k_overlap(student, teacher, k)


# --- learning


@pytest.mark.parametrize(
    ("name", "steps", "floor"), [("spearman", 100, 0.99), ("pairwise", 60, 0.95), ("l1", 100, 0.99)]
)
def test_a_student_learns_the_order(name, steps, floor):
    """A linear layer's softmax; its features give the teacher's order but for noise. The scores have heavy tails."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 16, generator=random)
    noisy = features @ torch.randn(16, generator=random) / 4 + 0.1 * torch.randn(2000, generator=random)
    teacher = (4 * noisy).softmax(-1)
    assert float(teacher.topk(100).values.sum()) > 0.9
    weights = torch.randn(16, generator=random).mul(0.1).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=0.03)
    start = float(rank_correlation((features @ weights).softmax(-1), teacher))
    for _ in range(steps):
        optimiser.zero_grad()
        LOSSES[name]((features @ weights).softmax(-1), teacher).backward()
        optimiser.step()
    scores = (features @ weights).softmax(-1)
    assert start < 0.5
    assert float(rank_correlation(scores, teacher)) > floor
    assert float(top_k_overlap(scores, teacher, 125)) > 0.8
