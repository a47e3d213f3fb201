"""With the store and without, lmms-eval's evaluator gets the same: VideoMME's first three questions share a video."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from lmms_flexselect.dump import read_selection
from lmms_flexselect.models import plugin
from tests.support.classes import CLASSES
from tests.support.evaluate import build, evaluate

OFF = {"store_gpu_gib": 0, "store_cpu_gib": 0}


@pytest.fixture
def given(monkeypatch):
    """What the families of models built from now on are given."""
    inputs: list[dict[str, Any]] = []
    own = plugin.FlexSelectPlugin.__init__

    def building(self, **arguments):
        own(self, **arguments)
        prompts = self._selecting._family.prompts

        def note(of_batch):
            inputs.append(dict(of_batch))
            return prompts(of_batch)

        self._selecting._family.prompts = note

    monkeypatch.setattr(plugin.FlexSelectPlugin, "__init__", building)
    return inputs


def run(name, checkpoints, folder, **arguments):
    """Answers of one run, and what was kept of each sample."""
    model, simple, own = CLASSES[name]
    arguments |= {"pretrained": checkpoints[model.removesuffix("_flexselect")], "dtype": "float32"}
    results = evaluate(model, ["videomme"], simple, **{**own, **arguments}, dump_selection=folder)
    answers = [(sample["doc_id"], sample["filtered_resps"]) for sample in results["samples"]["videomme"]]
    return answers, {path.name: read_selection(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("name", "batch_size"), [*((name, 1) for name in CLASSES), ("qwen2_5_vl", 2), ("qwen2_5_vl simple", 2)]
)
def test_answers_and_kept_tokens_are_the_same(name, batch_size, checkpoints, stock_videos, tmp_path, given):
    without = run(name, checkpoints, tmp_path / "off", batch_size=batch_size, **OFF)
    of_run = len(given)
    with_store = run(name, checkpoints, tmp_path / "on", batch_size=batch_size)
    assert with_store[0] == without[0]
    assert len(with_store[0]) == len(with_store[1]) == 4
    for file, (arrays, sample) in without[1].items():
        others, other = with_store[1][file]
        assert other == sample
        assert np.array_equal(arrays["kept"], others["kept"])
        np.testing.assert_allclose(others["scores"], arrays["scores"], rtol=1e-5, atol=1e-9)
    pixels_omitted = [any(inputs.get("pixels_omitted") or ()) for inputs in given]
    assert not any(pixels_omitted[:of_run])
    # LLaVA's frames are bytes that are held anyway; the pixels of others are made once.
    expected = [False, True, True, False] if batch_size == 1 else [False, False]
    assert pixels_omitted[of_run:] == ([False] * 4 if name.startswith("llava") else expected)


@pytest.mark.parametrize("name", ["qwen2_5_vl_flexselect", "llava_vid_flexselect", "internvl_hf_flexselect"])
def test_a_cleaned_model_holds_no_weights(name):
    """Scoring may need the room: a judge, or the next run of a config file."""
    model = build(name, simple=name.startswith("llava"), pretrained="needle")
    weights = weakref.ref(model.family.model)
    model.clean()
    gc.collect()
    assert weights() is None
