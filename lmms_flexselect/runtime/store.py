"""`VideoStore`: what does not depend on the question, kept for a video's next question."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from loguru import logger
from torch import Tensor, nn

_GIB = 2**30
_SAMPLES = 1024  # values of a parameter that its module's key is made of
_weights_keys: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], str]] = WeakKeyDictionary()


@dataclass
class _Entry:
    value: Any
    gpu: int  # bytes that lie, or would lie, on GPUs
    cpu: int
    offloaded: bool = False


class VideoStore:
    """Nested structures of tensors under keys, within two limits; what was used least recently goes first.

    A key is a tuple whose first part names the video. Tensors on a GPU stay there while the first limit allows, then
    move to the host, then are forgotten. One video never drives out its own parts: what finds no place beside them is
    not kept, and a warning says so once.

    Parameters
    ----------
    gpu_gib, cpu_gib
        Limits in GiB, of all GPUs together and of the host.
    """

    def __init__(self, gpu_gib: float = 0.0, cpu_gib: float = 0.0) -> None:
        self.limits = {"gpu": int(gpu_gib * _GIB), "cpu": int(cpu_gib * _GIB)}
        self._entries: OrderedDict[tuple[Hashable, ...], _Entry] = OrderedDict()
        self._warned = False

    def __contains__(self, key: tuple[Hashable, ...]) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def gpu_bytes(self) -> int:
        """Held on GPUs."""
        return sum(entry.gpu for entry in self._entries.values() if not entry.offloaded)

    @property
    def cpu_bytes(self) -> int:
        """Held on the host."""
        return sum(entry.cpu + entry.gpu * entry.offloaded for entry in self._entries.values())

    def get(self, key: tuple[Hashable, ...]) -> Any:
        """What was put under `key`, its tensors on a GPU or on the host as they lie; None if it is not there.

        Never to be written to.
        """
        if (entry := self._entries.get(key)) is None:
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: tuple[Hashable, ...], value: Any) -> bool:
        """Keep `value`: tensors in dicts, lists and tuples, and anything beside them; returns whether it is kept.

        Tensors are kept as they are, not copied, but for parts of larger ones.
        """
        self._entries.pop(key, None)
        value = mapped(_compact, value)
        tensors: list[Tensor] = []
        mapped(tensors.append, value)
        of_gpu = [t for t in tensors if t.device.type != "cpu"]
        gpu, total = (sum(t.nbytes for t in each) for each in (of_gpu, tensors))
        entry = _Entry(value, gpu, total - gpu)
        if gpu and not self._make_gpu_room(gpu, key[0]):
            entry.offloaded = True
        on_host = total if entry.offloaded else total - gpu
        if not self._make_cpu_room(on_host, key[0]):
            self._warn(key[0], total)
            return False
        if entry.offloaded:
            entry.value = mapped(_to_host, value)
        self._entries[key] = entry
        return True

    def leave_gpu(self) -> bool:
        """Give all GPU memory back, for good; returns whether there was any."""
        had = bool(self.gpu_bytes)
        if had:
            logger.warning("the GPU's memory does not suffice: what is kept of videos moves to the host")
        self.limits["gpu"] = 0
        for key in [key for key, entry in self._entries.items() if entry.gpu and not entry.offloaded]:
            self._offload(key)
        return had

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def _make_gpu_room(self, size: int, video: Hashable) -> bool:
        others = [k for k, e in self._entries.items() if k[0] != video and e.gpu and not e.offloaded]
        movable = sum(self._entries[key].gpu for key in others)
        if self.gpu_bytes - movable + size > self.limits["gpu"]:
            return False
        for key in others:
            if self.gpu_bytes + size <= self.limits["gpu"]:
                break
            self._offload(key, video)
        return True

    def _make_cpu_room(self, size: int, video: Hashable) -> bool:
        others = [k for k, e in self._entries.items() if k[0] != video and (e.cpu or e.offloaded)]
        droppable = sum(e.cpu + e.gpu * e.offloaded for e in map(self._entries.__getitem__, others))
        if size and self.cpu_bytes - droppable + size > self.limits["cpu"]:
            return False
        for key in others:
            if self.cpu_bytes + size <= self.limits["cpu"]:
                break
            del self._entries[key]
        return True

    def _offload(self, key: tuple[Hashable, ...], for_video: Hashable = None) -> None:
        """To the host; forgotten where even the host has no place but what `for_video` and its own video hold."""
        entry = self._entries[key]
        others = [k for k, e in self._entries.items() if k[0] not in (for_video, key[0]) and (e.cpu or e.offloaded)]
        for other in others:
            if self.cpu_bytes + entry.gpu <= self.limits["cpu"]:
                break
            del self._entries[other]
        if self.cpu_bytes + entry.gpu > self.limits["cpu"]:
            del self._entries[key]
            return
        entry.value, entry.offloaded = mapped(_to_host, entry.value), True

    def _warn(self, video: Hashable, size: int) -> None:
        if self._warned:
            return
        self._warned = True
        held = sum(e.gpu + e.cpu for k, e in self._entries.items() if k[0] == video)
        limits = ", ".join(f"store_{place}_gib={limit / _GIB:g}" for place, limit in self.limits.items())
        logger.warning(
            f"{limits}: too little for what one video's questions have in common ({(held + size) / _GIB:.2g} GiB, "
            "perhaps more); what finds no place is computed anew for every question"
        )


def weights_key(module: nn.Module) -> str:
    """What stands for a module in a key: no other module has it, nor the same one after its weights were changed.

    An `id` would not do: Python gives that of a forgotten module to the next. The key is made of each parameter's name,
    shape, dtype and number of in-place changes, and of about a thousand of its values; weights that are loaded from
    disk for every call count without their values. It is computed once, and again where a parameter was changed.
    """
    parameters = dict(module.named_parameters())
    changes = [0 if weight.is_inference() else weight._version for weight in parameters.values()]
    state = tuple((weight.data_ptr(), count) for weight, count in zip(parameters.values(), changes, strict=True))
    known, key = _weights_keys.get(module, ((), ""))
    if key and known == state:
        return key
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    for (name, weight), count in zip(parameters.items(), changes, strict=True):
        digest.update(repr((name, tuple(weight.shape), weight.dtype, count)).encode())
        if not weight.is_meta:
            values = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLES)]
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    _weights_keys[module] = state, digest.hexdigest()
    return digest.hexdigest()


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `function` of each tensor in its dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: mapped(function, part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(function, part) for part in value)
    return value


def _compact(tensor: Tensor) -> Tensor:
    """Holding no more memory than its own."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu")
