"""benchmarks/first_token.py at a tiny size: that it runs and adds up, nothing about time."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from lmms_flexselect.cost import flops
from lmms_flexselect.cost.flops import Peaks

# Little more than 32 units, of which all would be kept.
FRAMES = {"llava_vid": 34, "qwen2_5_vl": 66, "internvl_hf": 34}
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
    benchmark.write_noise(path, max(FRAMES.values()), cell=2)
    return path


@pytest.mark.parametrize(("name", "frames"), FRAMES.items())
def test_every_selector_of_a_family(benchmark, video, name, frames, tmp_path):
    llm = benchmark.build(name, "small", torch.device("cpu"), torch.float32)
    found = benchmark.measure_family(llm, video, frames, benchmark.SELECTORS, 1, PEAKS, warm_up=0, question=8)

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
        assert each.text == sys.modules["random_videollms"].BEFORE + 8
    assert reference.flops["prefill"] < none.flops["prefill"]
    assert lite.flops["scoring"] < reference.flops["scoring"]
    assert lite.flops["vision"] > none.flops["vision"] == reference.flops["vision"]

    lines = benchmark.table(found).splitlines()
    assert len(lines) == 2 + len(found)
    broken = dataclasses.replace(uniform, runs=[], failed="out of memory")
    assert "out of memory" in benchmark.table([broken])
    about = {"shapes": "small", "dtype": "float32", "machine": {"device": "any"}, "seconds_of": "the clock"}
    benchmark.write(tmp_path / "out", about, [*found, broken])
    written = json.loads((tmp_path / "out" / "first_token.json").read_text())
    assert written["results"][0]["median_time_to_first_token"] == none.seconds()
    assert written["results"][-1]["median_seconds"] is None
    assert (tmp_path / "out" / "first_token.md").read_text() == benchmark.table([*found, broken]) + "\n"
    assert (tmp_path / "out" / "first_token.png").stat().st_size > 1000


def test_what_does_not_fit_is_said_and_the_rest_is_measured(benchmark, monkeypatch):
    def measured(llm, found, *_):
        if found.selector == "none":
            raise torch.OutOfMemoryError("out of memory\nmuch more")
        return {"prefill": 2.0}

    monkeypatch.setattr(sys.modules["measuring"], "_first_token", measured)
    llm = sys.modules["random_videollms"].VideoLLM("llava_vid", None, None, 0, None, {})
    none, uniform = benchmark.measure_family(llm, "", 9, ("none", "uniform"), 3, PEAKS)
    assert (none.failed, none.runs) == ("out of memory", [])
    assert (uniform.failed, uniform.runs) == (None, 3 * [{"prefill": 2.0}])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llava_vid", 8_030_348_832), ("qwen2_5_vl", 8_292_166_656), ("internvl_hf", 8_075_365_376)],
)
def test_published_shapes(benchmark, name, parameters):
    """Without memory; a GPU's are built by the same call."""
    llm = benchmark.build(name, "published", torch.device("meta"), torch.bfloat16)
    assert sum(parameter.numel() for parameter in llm.model.parameters()) == parameters
    assert llm.selector.config.num_hidden_layers == 24
    assert {parameter.dtype for parameter in llm.model.parameters()} == {torch.bfloat16}


def test_floors_without_running_anything(benchmark, monkeypatch, capsys):
    words = "--families llava_vid --frames 32 512 --peak-tflops 100 --bandwidth-gbs 1000"
    monkeypatch.setattr(sys, "argv", ["floors.py", *words.split()])
    importlib.import_module("floors").main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    by_selector = {(row[1], row[2]): row for row in rows[2:]}
    assert len(by_selector) == 8
    assert by_selector["512", "flexselect"][3] == "6,720 of 107,520"
    seconds = {selector: float(by_selector["512", selector][-1]) for selector in benchmark.SELECTORS}
    assert seconds["uniform"] < seconds["lite"] < seconds["flexselect"] < seconds["none"]
    assert by_selector["32", "none"][3:] == by_selector["32", "flexselect"][3:]  # the budget holds all of it


def test_seams_are_left_as_they_were(benchmark):
    part_clock = sys.modules["part_clock"]
    clock = part_clock.PartClock()
    owners = [(owner, name, getattr(owner, name)) for owner, name, _ in part_clock._SEAMS]
    with pytest.raises(ZeroDivisionError), clock.at_seams(), clock.part("preprocess"), clock.part("decode"):
        raise ZeroDivisionError
    assert all(getattr(owner, name) is own for owner, name, own in owners)
    assert set(clock.seconds) == {"preprocess", "decode"}


def test_a_video_that_is_too_short_is_said(benchmark, video):
    llm = benchmark.build("internvl_hf", "small", torch.device("cpu"), torch.float32)
    (found,) = benchmark.measure_family(llm, video, 99, ("uniform",), 1, PEAKS, warm_up=0)
    assert found.failed is not None
    assert "not 99" in found.failed


def test_peaks_are_measured(benchmark):
    peaks = benchmark.measured_peaks(torch.device("cpu"), torch.float32, 64, 2**16)
    assert peaks.flops > 1e6
    assert peaks.bandwidth > 1e6
