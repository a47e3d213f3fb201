"""Bytes that tensors hold at once while something runs, on the CPU or on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Counts the storages of tensors that operators return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._known.add(storage._cdata)  # was there before, such as a weight that is only looked at
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        if (key := storage._cdata) in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that tensors made by `run` hold at once; what was there before does not count."""
    with _Live() as live:
        kept = run()
    del kept
    return live.peak
