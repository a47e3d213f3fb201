"""How much goes through a decoder at once, and what happens where a GPU's memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lmms_flexselect.errors import FlexSelectError

Item = TypeVar("Item")
Result = TypeVar("Result")

_GPU_SHARE = 8  # the scorer's activations may take one part in so many of a GPU
_CPU_BYTES = 64 * 2**20  # larger batches fall out of the processor's caches and gain nothing


def sets_at_once(decoder: Any, layers: int, tokens: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many frame sets of `tokens` tokens go through the first `layers` layers of a decoder together; at least 1.

    Of the device and the shapes alone, not of what is free at the moment: the same sets must meet in every question,
    or rounding would depend on what else is kept in memory.
    """
    config = decoder.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * layers * config.num_key_value_heads * head
    # Perceptrons take some tokens at a time; of a mixture of experts all tokens go to several experts each at once.
    experts = getattr(config, "num_experts_per_tok", 0) or 0
    routed = experts * (2 * config.hidden_size + 3 * getattr(config, "moe_intermediate_size", 0))
    a_token = dtype.itemsize * (12 * config.hidden_size + routed + kept)
    on_gpu = device.type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory // _GPU_SHARE if on_gpu else _CPU_BYTES
    return max(1, room // (a_token * tokens))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on `device`, without waiting for what a GPU was asked before."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def run_splitting_on_oom(
    run: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    advice: str,
    free_memory: Callable[[int], bool] = lambda items: False,
) -> list[Result]:
    """``run(items)``, in halves of halves where a GPU runs out of memory.

    Parameters
    ----------
    run
        Gives one result an item.
    items
        At least one.
    advice
        What the user can do if even one item is too much.
    free_memory
        Called with the number of items that were too many; returns whether it freed memory, so that they are worth
        another try.

    Raises
    ------
    FlexSelectError
        If one item alone does not fit.
    """
    try:
        return run(items)
    except torch.OutOfMemoryError:
        pass  # only now, outside, is what `run` held let go of
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if free_memory(len(items)):
        return run_splitting_on_oom(run, items, advice, free_memory)
    if len(items) == 1:
        raise FlexSelectError(f"out of GPU memory: {advice}")
    half = (len(items) + 1) // 2
    return [
        found for part in (items[:half], items[half:]) for found in run_splitting_on_oom(run, part, advice, free_memory)
    ]
