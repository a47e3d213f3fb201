"""The demo: lmms-eval by its config, the table, the pictures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.needle import needle_families
from lmms_flexselect.tools import demo
from lmms_flexselect.tools.installed import demo_runs
from lmms_flexselect.tools.scores import check, record
from lmms_flexselect.tools.show.sheet import dumped_sheet


@pytest.fixture(scope="module")
def config():
    return demo_runs()


MODELS = ("qwen2_5_vl_flexselect", "llava_vid_flexselect", "internvl_hf_flexselect")
SELECTORS = ("none", "random", "uniform", "flexselect", "lite")


def test_every_family_with_a_needle_model_is_in_the_demo():
    assert sorted(MODELS) == sorted(spec.models[0].name for spec in needle_families().values())


def test_the_config_asks_every_model_and_selector_the_same(config):
    runs = [(model, selector) for model in MODELS for selector in SELECTORS]
    assert [(run["model"], run["output_path"]) for run in config] == [
        (model, f"results/{model.removesuffix('_flexselect')}/{selector}") for model, selector in runs
    ]
    for run, (_, selector) in zip(config, runs, strict=True):
        assert f"selector={selector}" in run["model_args"].split(",")
        assert {name: run[name] for name in ("tasks", "limit", "batch_size")} == {
            name: config[0][name] for name in ("tasks", "limit", "batch_size")
        }


@pytest.mark.cli
def test_a_short_demo_through_the_command(config, tmp_path):
    """Half of the demo's own runs, on two lengths and one video each; ``make scores`` has the others too."""
    first, *others = MODELS
    chosen = [(first, selector) for selector in SELECTORS] + [(m, s) for m in others for s in ("none", "flexselect")]
    short = {"tasks": "flexselect_needle_16,flexselect_needle_128", "limit": 6}
    runs = [{**run, **short} for run in config if (run["model"], run["output_path"].split("/")[-1]) in chosen]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(runs))
    measured = demo.run(tmp_path / "out", tmp_path / "short.yaml")
    assert [(m.model, m.selector, m.units) for m in measured] == [
        (*run, units) for run in chosen for units in (16, 128)
    ]
    expected = (("qwen2_5_vl_flexselect", 4, 256), ("llava_vid_flexselect", 6, 128), ("internvl_hf_flexselect", 6, 128))
    for model, tokens_a_unit, frames in expected:
        long = {m.selector: m for m in measured if m.units == 128 and m.model == model}
        assert long["none"].tokens_kept == long["none"].tokens_in == 128 * tokens_a_unit
        assert {long[name].tokens_kept for name in long if name != "none"} == {16 * tokens_a_unit}
        assert min(long[name].accuracy for name in ("flexselect", "lite") if name in long) >= 5 / 6
        assert long["flexselect"].frames == frames
    assert all(m.questions == 6 and m.first_token > 0 and m.memory > 0 for m in measured)

    results = tmp_path / "out" / "results"
    recorded = record([results], tmp_path / "expect.yaml")
    assert {(run.model, run.checkpoint, run.selector) for run in recorded} == {
        (model, "needle", selector) for model, selector in chosen
    }
    report = check([results], tmp_path / "expect.yaml")
    assert (report.passed, len(report.cases)) == (True, 2 * len(recorded))

    text = demo.table(measured)
    assert all(name in text for name in (*SELECTORS, "Qwen2.5-VL", "LLaVA-Video", "InternVL"))
    demo.accuracy_over_length(measured, tmp_path / "a.png")
    dumped_sheet(tmp_path / "out" / "selection" / "flexselect_needle_128__test__0.npz", tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_run_without_results_is_an_error_that_names_the_log(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # ends well and does nothing, as lmms-eval may
    says = r"qwen2_5_vl_flexselect with .*selector=none wrote no results; see .*lmms_eval\.log"
    with pytest.raises(FlexSelectError, match=says):
        demo.run(tmp_path / "out")


def test_results_are_read_per_task(tmp_path: Path):
    values = {
        "samples": 4,
        "visual_tokens": 64.0,
        "visual_tokens_kept": 8.0,
        "time_to_first_token_seconds": 0.5,
        "peak_memory_gib": 1.25,
    }
    results = {
        "results": {"flexselect_needle_64": {"needle_acc,none": 0.5}, "flexselect_needle": {"alias": "group"}},
        "config": {
            "resolved_cli_args": {
                "flexselect": {"options": {"selector": "uniform"}, "by_task": {"flexselect_needle_64": values}}
            }
        },
    }
    (measured,) = demo.read_results("llava_vid_flexselect", json.loads(json.dumps(results)))
    assert measured == demo.DemoResult("llava_vid_flexselect", "uniform", 64, 0.5, 4, 64.0, 8.0, 0.5, 1.25)
