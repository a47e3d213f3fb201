"""How much is read at once, and what happens where a GPU's memory does not suffice."""

from __future__ import annotations

import pytest
import torch

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.runtime.memory import run_splitting_on_oom, sets_at_once
from tests.support.random_models import decoder

CPU = torch.device("cpu")


def limited(most, sizes):
    """Doubles its items; more than `most` of them are more than the memory holds."""

    def run(items):
        sizes.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return [2 * item for item in items]

    return run


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_halves_until_it_fits(count, most):
    sizes: list[int] = []
    assert run_splitting_on_oom(limited(most, sizes), list(range(count)), "") == [2 * i for i in range(count)]
    assert max(size for size in sizes if size <= most) >= min(count, -(-most // 2))


def test_one_that_does_not_fit_ends_with_advice():
    sizes: list[int] = []
    with pytest.raises(FlexSelectError, match=r"^out of GPU memory: give fewer frames$"):
        run_splitting_on_oom(limited(0, sizes), [1, 2, 3], "give fewer frames")
    assert sizes == [3, 2, 1]


def test_memory_that_can_be_freed_is_freed_first():
    sizes: list[int] = []
    asked: list[int] = []

    def free_memory(items):
        asked.append(items)
        return len(asked) == 1

    assert run_splitting_on_oom(limited(2, sizes), [1, 2, 3], "", free_memory) == [2, 4, 6]
    assert sizes == [3, 3, 2, 1]
    assert asked == [3, 3]


def test_other_errors_are_not_ours():
    def run(items):
        raise RuntimeError("a kernel")

    with pytest.raises(RuntimeError, match="a kernel"):
        run_splitting_on_oom(run, [1, 2], "")


def test_small_sets_are_read_together_and_large_ones_alone():
    model = decoder("qwen2")
    assert sets_at_once(model, 2, 10, torch.float32, CPU) > 100
    assert sets_at_once(model, 2, 10**6, torch.float32, CPU) == 1
    assert sets_at_once(model, 2, 100, torch.float16, CPU) // 2 == sets_at_once(model, 2, 100, torch.float32, CPU)
