"""The real ``lmms-eval --use_cache``: what model arguments name may have changed since answers were cached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from lmms_eval.caching.response_cache import ResponseCache
from safetensors.torch import load_file, save_file

from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.recall_file import KIND
from tests.support.evaluate import evaluate

pytestmark = pytest.mark.cli

FRAMES = "max_num_frames=16,min_pixels=3136,max_pixels=9408,token_budget=24,max_frames_per_set=4,dtype=float32"


def write_measured(file, layer):
    said = {"kind": KIND, "family": "qwen2_5_vl", "num_layers": 6, "scored_by": "model"}
    file.write_text(json.dumps({**said, "recommended_layer": {"max": layer, "mean": layer}}))


def change_weights(folder):
    """The same names, shapes, size and modification time."""
    file = folder / "model.safetensors"
    state = file.stat()
    weights = {name: -weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert file.stat().st_size == state.st_size
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def results(folder):
    (file,) = folder.rglob("*_results.json")
    block = json.loads(file.read_text())["config"]["resolved_cli_args"]["flexselect"]
    (samples,) = folder.rglob("*_samples_*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    return block, answers


def test_answers_of_what_a_name_meant_before_are_not_taken(tmp_path, random_checkpoint, stock_videos):
    """Two commands of several runs each, with the same arguments; between them all that they name is replaced."""
    model, selector, measured = tmp_path / "model", tmp_path / "selector", tmp_path / "layers.json"
    shutil.copytree(random_checkpoint, model)
    shutil.copytree(CHECKPOINTS / "qwen2_5_vl" / "selector", selector)
    write_measured(measured, 0)
    arguments = {
        "measured": f"pretrained={random_checkpoint},{FRAMES},reference_layer=auto:{measured}",
        "selector": f"pretrained=needle,selector=lite,selector_path={selector},token_budget=96",
        "model": f"pretrained={model},{FRAMES},reference_layer=3",
        "same": f"pretrained={random_checkpoint}/,{FRAMES},reference_layer=4",  # not 3: `model` is a copy of this one
    }
    differing = {"first": f",dump_selection={tmp_path / 'a'},strict=yes", "second": ",prefetch_videos=0,strict=false"}
    for command in ("first", "second"):
        runs = [
            {
                "model": "qwen2_5_vl_flexselect",
                "tasks": "lvbench",
                "batch_size": 1,
                "log_samples": True,
                "model_args": of_run + differing[command] * (name == "same"),
                "output_path": str(tmp_path / command / kind / name),
                **({"use_cache": str(tmp_path / "cache")} if kind == "cached" else {}),
            }
            for name, of_run in arguments.items()
            for kind in ("cached", "fresh")
            if kind == "cached" or (command == "second" and name != "same")
        ]
        (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
        line = [sys.executable, "-m", "lmms_eval", "--config", str(tmp_path / "runs.yaml")]
        done = subprocess.run(
            line, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=600, check=False
        )
        for run in runs:
            assert list((tmp_path / run["output_path"]).rglob("*_results.json")), done.stdout[-3000:] + done.stderr
        if command == "first":
            write_measured(measured, 5)
            change_weights(model)
            change_weights(selector)
    for name in ("measured", "selector", "model"):
        before, _ = results(tmp_path / "first" / "cached" / name)
        block, answers = results(tmp_path / "second" / "cached" / name)
        assert before["overall"]["samples"] == block["overall"]["samples"] == 4, name
        assert answers == results(tmp_path / "second" / "fresh" / name)[1]
        if name == "measured":
            assert (before["options"]["reference_layer"], block["options"]["reference_layer"]) == (0, 5)
        else:
            assert before["options"]["checkpoint"] != block["options"]["checkpoint"]
    before, first = results(tmp_path / "first" / "cached" / "same")
    block, second = results(tmp_path / "second" / "cached" / "same")
    assert (before["overall"]["samples"], block["overall"]["samples"]) == (4, 0)
    assert first == second
    assert before["options"]["checkpoint"] == block["options"]["checkpoint"]
    assert block["options"]["checkpoint"]["name"] == random_checkpoint.name


def test_lmms_evals_cache_makes_its_keys_as_this_package_knows(tmp_path):
    """`_upstream` puts a model's identity where upstream's `execute` reads it; see `_key_by_content`."""
    cache = ResponseCache(str(tmp_path / "a.db"), str(tmp_path / "a.jsonl"), model_fingerprint="model|arguments")
    assert isinstance(cache._model_fingerprint_hash, str)
    assert cache.model_fingerprint == "model|arguments"


def test_only_what_changes_answers_asks_again(tmp_path, random_checkpoint, stock_videos, monkeypatch):
    own = {"max_num_frames": 16, "min_pixels": 3136, "max_pixels": 9408, "token_budget": 24, "dtype": "float32"}

    def asked(**changed):
        arguments = {"pretrained": random_checkpoint, **own, **changed}
        run = evaluate("qwen2_5_vl_flexselect", ["lvbench"], use_cache=str(tmp_path), **arguments)
        return run.get("throughput", {}).get("avg_samples", 0)

    assert (asked(), asked()) == (4, 0)
    copy = shutil.copytree(random_checkpoint, tmp_path / "copy")
    assert asked(pretrained=f"{copy}/", dump_selection=tmp_path / "dump", strict="no", prefetch_videos=0) == 0
    assert asked(token_budget=23) == 4
    monkeypatch.setattr("lmms_flexselect.models.plugin.__version__", "another")
    assert asked() == 4
