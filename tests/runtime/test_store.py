"""What a store keeps, where, what it forgets first, and that its accounts are exact."""

from __future__ import annotations

import random

import pytest
import torch
from loguru import logger
from torch import nn

from lmms_flexselect.runtime import store as store_module
from lmms_flexselect.runtime.store import VideoStore, weights_key

KIB = 2**10 / 2**30  # in GiB


def of(kib, device="cpu"):
    """A structure of that size, in three tensors."""
    a, b = torch.zeros(kib * 64, device=device), torch.zeros(kib * 128, dtype=torch.float16, device=device)
    return {"keys": [a, (b, torch.zeros(kib * 512, dtype=torch.uint8, device=device))], "name": "anything"}


@pytest.fixture
def gpu(monkeypatch):
    """A device that is not the CPU, for bookkeeping: tensors on it hold nothing."""
    monkeypatch.setattr(store_module, "_to_host", lambda t: torch.zeros(t.shape, dtype=t.dtype))
    return "meta"


@pytest.fixture
def warnings():
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(number)


def held(store):
    """What it holds, counted tensor by tensor."""
    sizes = {"cpu": 0, "meta": 0}

    def count(tensor):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        sizes[tensor.device.type] += tensor.nbytes

    for entry in store._entries.values():
        store_module.mapped(count, entry.value)
    return sizes["meta"], sizes["cpu"]


def test_what_was_put_is_there():
    store, value = VideoStore(cpu_gib=4 * KIB), of(1)
    assert store.get(("a", 1)) is None
    assert store.put(("a", 1), value)
    found = store.get(("a", 1))
    assert found["name"] == "anything"
    assert torch.equal(found["keys"][0], value["keys"][0])
    assert found["keys"][0].data_ptr() == value["keys"][0].data_ptr()  # not a copy
    assert ("a", 1) in store
    assert store.cpu_bytes == 1024


def test_the_video_that_was_used_least_recently_goes_first():
    store = VideoStore(cpu_gib=3 * KIB)
    for video in "abc":
        store.put((video, 1), of(1))
    store.get(("a", 1))
    store.put(("d", 1), of(1))
    assert [("a", 1) in store, ("b", 1) in store, ("c", 1) in store, ("d", 1) in store] == [True, False, True, True]
    assert store.cpu_bytes == 3 * 1024


def test_a_part_of_a_larger_tensor_does_not_keep_the_rest():
    store = VideoStore(cpu_gib=1 * KIB)
    assert store.put(("a", 1), [torch.zeros(1000, 256)[3]])
    assert held(store) == (0, 1024)


def test_a_gradient_is_not_kept():
    store = VideoStore(cpu_gib=1 * KIB)
    store.put(("a", 1), torch.ones(4, requires_grad=True) * 2)
    assert store.get(("a", 1)).grad_fn is None


def test_from_the_gpu_to_the_host_to_nowhere(gpu):
    store = VideoStore(2 * KIB, 2 * KIB)
    for video in "ab":
        store.put((video, 1), of(1, gpu))
    assert (store.gpu_bytes, store.cpu_bytes) == held(store) == (2048, 0)
    store.put(("c", 1), of(1, gpu))
    assert store.get(("a", 1))["keys"][0].device.type == "cpu"
    assert (store.gpu_bytes, store.cpu_bytes) == held(store) == (2048, 1024)
    store.put(("d", 1), of(1, gpu))  # b moves
    store.put(("e", 1), of(1, gpu))  # c moves, and b, which nobody asked for, makes room
    assert [("a", 1) in store, ("b", 1) in store, ("c", 1) in store] == [True, False, True]
    assert (store.gpu_bytes, store.cpu_bytes) == held(store) == (2048, 2048)


def test_what_the_gpu_has_no_place_for_goes_to_the_host(gpu):
    store = VideoStore(1 * KIB, 4 * KIB)
    store.put(("a", 1), of(1, gpu))
    store.put(("a", 2), of(2, gpu))
    assert (store.gpu_bytes, store.cpu_bytes) == held(store) == (1024, 2048)


def test_a_video_does_not_drive_out_its_own_parts(warnings):
    store = VideoStore(cpu_gib=2 * KIB)
    store.put(("a", 1), of(2))
    assert not store.put(("a", 2), of(1))
    assert not store.put(("b", 1), of(3))
    assert ("a", 1) in store
    assert len(warnings) == 1
    assert warnings[0].startswith("store_gpu_gib=0, store_cpu_gib=1.90735e-06: too little for what one video's")
    assert store.put(("b", 1), of(2))
    assert ("a", 1) not in store


def test_a_new_value_takes_the_old_ones_place():
    store = VideoStore(cpu_gib=2 * KIB)
    store.put(("a", 1), of(2))
    assert store.put(("a", 1), of(1))
    assert store.cpu_bytes == 1024


def test_the_gpu_can_have_its_memory_back(gpu, warnings):
    store = VideoStore(4 * KIB, 2 * KIB)
    for video in "abc":
        store.put((video, 1), of(1, gpu))
    assert store.leave_gpu()
    assert (store.gpu_bytes, store.cpu_bytes) == held(store) == (0, 2048)
    assert not store.leave_gpu()
    assert len(warnings) == 1
    store.put(("d", 1), of(1, gpu))
    assert (store.gpu_bytes, store.cpu_bytes) == held(store) == (0, 2048)


@pytest.mark.parametrize("seed", range(5))
def test_the_limits_hold_whatever_comes(gpu, seed):
    draw = random.Random(seed)
    store = VideoStore(5 * KIB, 7 * KIB)
    for step in range(300):
        key = (draw.choice("abcdef"), draw.randrange(4))
        if draw.random() < 0.3:
            store.get(key)
        else:
            kept = store.put(key, of(draw.randint(1, 4), draw.choice(["cpu", gpu])))
            assert kept == (key in store)
        assert (store.gpu_bytes, store.cpu_bytes) == held(store), step
        assert store.gpu_bytes <= 5 * 1024
        assert store.cpu_bytes <= 7 * 1024
    store.clear()
    assert (store.gpu_bytes, store.cpu_bytes, len(store)) == (0, 0, 0)


def of_weights(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2000), nn.Linear(2000, 2))


def test_a_modules_key_is_that_of_its_weights():
    module, other = of_weights(), of_weights(1)
    key = weights_key(module)
    assert weights_key(module) == key
    assert weights_key(other) != key
    with torch.no_grad():
        module[0].weight[1, 1] += 1e-3  # one value of many
    changed = weights_key(module)
    assert changed not in (key, weights_key(other))
    module.load_state_dict(of_weights(2).state_dict())
    assert weights_key(module) not in (key, changed, weights_key(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.double(),
        lambda module: module.to("meta"),
        lambda module: module.append(nn.Linear(2, 2)),
        lambda module: setattr(module[1], "bias", nn.Parameter(torch.ones(2))),
    ],
    ids=["dtype", "meta", "layer", "parameter"],
)
def test_a_module_with_other_parameters_has_another_key(change):
    module = of_weights()
    before = weights_key(module)
    change(module)
    assert weights_key(module) != before


def test_a_forgotten_modules_key_is_not_given_to_another():
    """Python gives the new one the same `id`, mostly."""
    assert len({weights_key(of_weights(seed)) for seed in range(20)}) == 20
