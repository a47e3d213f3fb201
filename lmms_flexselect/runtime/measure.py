"""Clocks and memory marks that are honest on a GPU."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

_GIB = 2**30


def now() -> float:
    """Seconds on a monotonic clock, after the GPUs have finished what was asked of them."""
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return time.perf_counter()


class FirstTokenClock(StoppingCriteria):
    """Never stops anything; notes when it is first asked, which is right after the first token."""

    def __init__(self) -> None:
        self.time: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """See `transformers.StoppingCriteria`."""
        if self.time is None:
            self.time = now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class PeakMemory:
    """Peak of the `with` block in GiB: GPU memory allocated, summed over devices, or resident memory on a CPU."""

    gib: float = 0.0


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak of the enclosed block; read `.gib` afterwards."""
    peak = PeakMemory()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux resets a process's high-water mark on request; elsewhere it is since the start
            Path("/proc/self/clear_refs").write_text("5")
    try:
        yield peak
    finally:
        if on_gpu:
            devices = range(torch.cuda.device_count())
            peak.gib = sum(torch.cuda.max_memory_allocated(device) for device in devices) / _GIB
        else:
            peak.gib = _resident_peak() / _GIB


def _resident_peak() -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
