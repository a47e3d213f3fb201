"""Time and memory of the ranking losses, and what the strength of the soft ranks does.

``OMP_NUM_THREADS=2 python benchmarks/soft_rank.py`` on an otherwise idle machine (threads that share a core spin).
Memory is the growth of the process's peak resident set over one forward and backward pass (Linux).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lmms_flexselect.training.losses import LOSSES, hard_rank, spearman_loss, standardised_log
from lmms_flexselect.training.soft_rank import soft_rank


def attention(tokens: int, seed: int = 0, heads: int = 8, texts: int = 6) -> Tensor:
    """Maxima over heads and text tokens of softmaxes: relevance shared within frames, own noise, a few sinks."""
    random = torch.Generator().manual_seed(seed)
    frames = torch.randn(tokens // 49 + 1, generator=random).repeat_interleave(49)[:tokens]
    own = torch.randn(heads, texts, tokens, generator=random)
    sinks = 7.0 * (torch.rand(tokens, generator=random) < 0.002)
    return (1.5 * frames + torch.randn(tokens, generator=random) + 1.2 * own + sinks).softmax(-1).amax((0, 1))


def heavy_tails(tokens: int, seed: int = 0) -> Tensor:
    """Logarithms of Student's t distribution with three degrees of freedom."""
    random = torch.Generator().manual_seed(seed)
    chi = torch.randn(3, tokens, generator=random).square().mean(0).sqrt()
    return (torch.randn(tokens, generator=random) / chi).clamp(-30, 30).exp()


def _status(field: str) -> float:
    """A size from /proc/self/status, in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def milliseconds_and_megabytes(
    loss: Callable[[Tensor, Tensor], Tensor], tokens: int, repeats: int
) -> tuple[float, float]:
    """Of one forward and backward pass: the fastest and the most of `repeats`."""
    student, teacher = attention(tokens, 1).requires_grad_(), attention(tokens, 2)
    loss(student[:64], teacher[:64]).backward()  # what is imported or allocated once
    fastest, most = float("inf"), 0.0
    for _ in range(repeats):
        student.grad = None
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before, start = _status("VmRSS"), time.perf_counter()
        loss(student, teacher).backward()
        fastest = min(fastest, 1000 * (time.perf_counter() - start))
        most = max(most, _status("VmHWM") - before)
    return fastest, most


def soft_against_hard(scores: Tensor, strength: float) -> tuple[float, float]:
    """Pearson correlation of soft with hard ranks, and the share of soft ranks that carry a gradient."""
    values = standardised_log(scores).requires_grad_()
    ranks = soft_rank(values, strength / len(scores))
    weights = torch.randn(len(scores), generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((ranks * weights).sum(), values)
    return 1 - float(spearman_loss(scores, scores, strength)), float((gradient != 0).float().mean())


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=13440)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{arguments.tokens} tokens, forward and backward, {torch.get_num_threads()} threads")
    for name, loss in LOSSES.items():
        repeats = min(2, arguments.repeats) if name == "pairwise" else arguments.repeats
        spent, memory = milliseconds_and_megabytes(loss, arguments.tokens, repeats)
        print(f"  {name:10} {spent:8.1f} ms {memory:8.1f} MB")
    print("correlation of soft with hard ranks / share of soft ranks with a gradient")
    strengths = (0.5, 1.0, 1.3, 1.5, 2.0, 2.7, 4.0)
    print("  " + " " * 19 + "".join(f"{strength:>14}" for strength in strengths))
    for scores_of in (attention, heavy_tails):
        for tokens in (980, 3920, arguments.tokens):
            both = [soft_against_hard(scores_of(tokens), strength) for strength in strengths]
            cells = "".join(f"{correlation:>9.5f}/{share:4.2f}" for correlation, share in both)
            print(f"  {scores_of.__name__:12} {tokens:6}{cells}")
    scores = attention(arguments.tokens)
    pooled = soft_rank(scores, 1.5 / len(scores))
    agreement = float(torch.corrcoef(torch.stack([pooled, hard_rank(scores)]))[0, 1])
    print("raw scores, strength 1.5, the order being perfect:")
    print(f"  soft ranks from {float(pooled.min()):.1f} to {float(pooled.max()):.1f}, correlation {agreement:.3f}")


if __name__ == "__main__":
    main()
