"""benchmarks/first_token.py at a tiny size: that it runs and adds up, nothing about time."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from lmms_flexselect import flops
from lmms_flexselect.flops import Peaks

FRAMES = 66  # two frame sets for one frame a unit, and the fewest that select from Qwen2.5-VL's pairs
PEAKS = Peaks(1e12, 1e11)


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark's modules lie in a folder that is no package."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("first_token")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def video(benchmark, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("video") / "noise.mp4")
    benchmark.write_noise(path, FRAMES, cell=2)
    return path


@pytest.mark.parametrize("name", ["llava_vid", "qwen2_5_vl", "internvl_hf"])
def test_every_selector_of_a_family(benchmark, video, name, tmp_path):
    llm = benchmark.build(name, "small", torch.device("cpu"), torch.float32)
    found = benchmark.measure_family(llm, video, FRAMES, benchmark.SELECTORS, repeats=1, peaks=PEAKS, question=8)

    assert [each.selector for each in found] == list(benchmark.SELECTORS)
    none, reference, lite, uniform = found
    assert none.kept == none.visual
    assert reference.kept == lite.kept == uniform.kept < none.visual
    for each in found:
        (run,) = each.runs
        assert set(run) <= set(benchmark.PARTS)
        assert ("scoring" in run) == (each in (reference, lite))
        assert all(run[part] > 0 for part in ("decode", "preprocess", "vision", "prefill", "first token"))
        assert each.seconds() == pytest.approx(sum(run.values()))
        assert set(each.floor) == set(flops.PARTS)
        assert each.text == benchmark.BEFORE + 8
    assert reference.flops["prefill"] < none.flops["prefill"]
    assert lite.flops["scoring"] < reference.flops["scoring"]
    assert lite.flops["vision"] > none.flops["vision"] == reference.flops["vision"]

    lines = benchmark.table(found).splitlines()
    assert len(lines) == 2 + len(found)
    broken = dataclasses.replace(uniform, runs=[], failed="out of memory")
    assert "out of memory" in benchmark.table([broken])
    assert json.loads(json.dumps(benchmark.as_json(none)))["median_time_to_first_token"] == none.seconds()
    benchmark.stacked_bars([*found, broken], "title", tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_seams_are_left_as_they_were(benchmark):
    clock = benchmark.PartClock()
    owners = [(owner, name, getattr(owner, name)) for owner, name, _ in sys.modules["part_clock"]._SEAMS]
    with pytest.raises(ZeroDivisionError), clock.at_seams(), clock.part("preprocess"), clock.part("decode"):
        raise ZeroDivisionError
    assert all(getattr(owner, name) is own for owner, name, own in owners)
    assert set(clock.seconds) == {"preprocess", "decode"}


def test_peaks_are_measured(benchmark):
    peaks = benchmark.measured_peaks(torch.device("cpu"), torch.float32, 64, 2**16)
    assert peaks.flops > 1e6
    assert peaks.bandwidth > 1e6
