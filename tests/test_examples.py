"""The example packages, installed as anybody's would be, and used from the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmms_flexselect.tools.installed import installed_path
from tests.support import llava_onevision, stock_tasks

pytestmark = pytest.mark.cli

ROOT = Path(__file__).parents[1]
EXAMPLES = ("llava_onevision", "selector")
# 8 frames of 4 tokens in two sets.
SELECT = "max_frames_num=8,token_budget=12,max_frames_per_set=4,reference_layer=2,dtype=float32"
NEEDLE = "pretrained=needle,selector"


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH with the example packages, their entry points among them."""
    folder = tmp_path_factory.mktemp("examples")
    for name in EXAMPLES:
        shutil.copytree(ROOT / "examples" / name, folder / name)  # a build leaves files in the source
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
        done = run([*uv, "--target", str(folder / "site"), str(folder / name)], folder)
        assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return llava_onevision.write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "onevision")


@pytest.fixture(scope="module")
def evaluated(installed, checkpoint, tmp_path_factory):
    """Folder and output of the runs of one ``lmms-eval`` process; its second task has a video that is none."""
    folder = tmp_path_factory.mktemp("evaluated")
    home = folder / "home"
    stock_tasks.build(home, "mlvu_dev")
    _, broken, *_ = stock_tasks.build(home, "lvbench")
    broken.write_bytes(b"no video")
    base: dict[str, Any] = {"batch_size": 1, "log_samples": True, "include_path": str(installed_path("tasks"))}
    ours = {"model": "llava_onevision_flexselect", "tasks": "mlvu_dev"}
    selected = f"pretrained={checkpoint},{SELECT}"
    needle: dict[str, Any] = {"model": "qwen2_5_vl_flexselect", "tasks": "flexselect_needle_64", "limit": 6}
    upstream = f"pretrained={checkpoint},max_frames_num=8,dtype=float32,device=cpu,device_map=cpu"
    runs: dict[str, dict[str, Any]] = {
        "reference": {**ours, "model_args": f"{selected},dump_selection={folder / 'dump'}"},
        "none": {**ours, "model_args": f"{selected},selector=none"},
        "upstream": {"model": "llava_hf", "tasks": "mlvu_dev", "model_args": upstream, "force_simple": True},
        "broken": {**ours, "tasks": "lvbench", "model_args": f"{selected},strict=false"},
        "strict": {**ours, "tasks": "lvbench", "model_args": selected},
        "lite": {**ours, "model_args": f"{selected},selector=lite,selector_path=anywhere"},
        "named": {**needle, "model_args": f"{NEEDLE}=longest"},
        "path": {**needle, "model_args": f"{NEEDLE}=flexselect_longest:Longest,selector_args=norm:1"},
        "wrong": {**needle, "model_args": f"{NEEDLE}=longest,selector_args=power:1"},
    }
    contents = [{**base, **each, "output_path": str(folder / name)} for name, each in runs.items()]
    (folder / "runs.yaml").write_text(yaml.safe_dump(contents))
    command = [sys.executable, "-m", "lmms_eval", "--config", "runs.yaml"]
    return folder, run(command, folder, PYTHONPATH=str(installed), HF_HOME=str(home))


def results(evaluated, name: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in (evaluated[0] / name).rglob("*_results.json")]


def answers(evaluated, name: str) -> dict[int, str]:
    (path,) = (evaluated[0] / name).rglob("*_samples_*.jsonl")
    return {sample["doc_id"]: sample["filtered_resps"] for sample in map(json.loads, path.read_text().splitlines())}


def test_the_examples_are_short():
    lines = [
        len([line for line in path.read_text().splitlines() if line.strip()])
        for path in (ROOT / "examples" / "llava_onevision").rglob("*.py")
    ]
    assert sum(lines) <= 200


@pytest.mark.parametrize(("name", "kept"), [("reference", 12), ("none", 32)])
def test_the_family_in_lmms_eval(evaluated, name, kept):
    (found,) = results(evaluated, name) or pytest.fail(evaluated[1].stdout[-3000:])
    block = found["config"]["resolved_cli_args"]["flexselect"]
    assert (
        block["by_task"]["mlvu_dev"] | {"visual_tokens": 32, "visual_tokens_kept": kept, "samples": 4}
        == (block["by_task"]["mlvu_dev"])
    )
    assert block["options"]["upstream"]["max_frames_num"] == "8"


def test_the_family_without_selection_is_upstreams_own_model(evaluated):
    own = answers(evaluated, "none")
    assert own == answers(evaluated, "upstream")
    assert own != answers(evaluated, "reference")
    assert len(list((evaluated[0] / "dump").iterdir())) == 4


def test_a_bad_video_of_the_family(evaluated):
    (found,) = results(evaluated, "broken")
    (unreadable,) = found["config"]["resolved_cli_args"]["flexselect"]["unreadable"]
    assert unreadable["doc_id"] == 1
    assert answers(evaluated, "broken")[1] == ""
    assert all(answer for number, answer in answers(evaluated, "broken").items() if number != 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("strict", r"/lvbench/.*: "),
        ("lite", r"family=llava_onevision: has no FlexSelect-Lite selectors; those with are .*llava_vid"),
        ("wrong", r"selector_args=power: selector=longest takes norm"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_results(evaluated, name, said):
    assert results(evaluated, name) == []
    assert len([line for line in evaluated[1].stdout.splitlines() if "ERROR" in line and re.search(said, line)]) == 1


def test_the_selector_in_lmms_eval(evaluated):
    options = []
    for name in ("named", "path"):
        (found,) = results(evaluated, name) or pytest.fail(evaluated[1].stdout[-3000:])
        block = found["config"]["resolved_cli_args"]["flexselect"]
        assert block["overall"]["visual_tokens_kept"] == 64 < block["overall"]["visual_tokens"]
        options.append((block["options"]["selector"], block["options"]["selector_args"]))
    assert options == [("longest", None), ("flexselect_longest:Longest", {"norm": 1})]


@pytest.fixture(scope="module")
def commands(installed, checkpoint, evaluated, tmp_path_factory):
    """What ``lmms-flexselect`` commands print, one after the other in one process: exit status and text of each."""
    folder = tmp_path_factory.mktemp("commands")
    video = next((evaluated[0] / "home").rglob("video0.mp4"))
    model = ["--model", "llava_onevision_flexselect", "--model_args", f"pretrained={checkpoint},{SELECT}"]
    one_run = {"model": model[1], "model_args": model[3], "tasks": "mlvu_dev", "batch_size": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(one_run))
    given = [word for name in ("pretrained", "data", "videos", "output_dir") for word in (f"--{name}", "x")]
    calls = {
        "recall": ["recall", *model, "--samples", "2", "--frames", "8", "--output", "layers.json"],
        "show": ["show", str(video), "What is shown?", *model, "--output", "shown"],
        "doctor": ["doctor", "run.yaml"],
        "train": ["train", "--family", "llava_onevision", *given],
    }
    script = (
        "import contextlib, io, json, sys\n"
        "from lmms_flexselect.cli import main\n"
        "said = {}\n"
        "for name, words in json.loads(sys.argv[1]).items():\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):\n"
        "        status = main(words)\n"
        "    said[name] = (status, out.getvalue())\n"
        "print(json.dumps(said))\n"
    )
    environment = {"PYTHONPATH": str(installed), "HF_HOME": str(evaluated[0] / "home")}
    done = run([sys.executable, "-c", script, json.dumps(calls)], folder, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_recall_of_the_family(commands):
    folder, said = commands
    assert said["recall"][0] == 0, said["recall"][1]
    measured = json.loads((folder / "layers.json").read_text())
    assert (measured["family"], measured["num_layers"], measured["samples"]) == ("llava_onevision", 4, 2)


def test_show_of_the_family(commands):
    folder, said = commands
    assert said["show"][0] == 0, said["show"][1]
    assert "12 of 32 tokens kept" in said["show"][1]
    assert (folder / "shown" / "page.html").is_file()


def test_doctor_of_the_family(commands):
    _, (_, said) = commands[0], commands[1]["doctor"]
    assert "selector=reference at layer 2, 8 frames = 32 visual tokens at most, 12 kept, float32" in said


def test_train_says_that_the_family_has_no_selectors(commands):
    status, said = commands[1]["train"]
    (line,) = [line for line in said.splitlines() if line.startswith("lmms-flexselect: ")]
    assert status == 1
    assert "family=llava_onevision: has no FlexSelect-Lite selectors; those with are " in line
