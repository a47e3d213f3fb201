"""The built wheel, installed in a clean environment and used away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # uv builds in an isolated environment, from the files that setuptools is told of and no others.
    subprocess.run([sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "-o", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_tasks_configs_and_the_needle_model(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for source, installed in (("tasks", "tasks"), ("run_configs", "run_configs")):
        tracked = [path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected = {f"lmms_flexselect/{installed}/{path.relative_to(ROOT / source)}" for path in tracked}
        assert expected <= names, expected - names
    for family in ("qwen2_5_vl", "llava_vid", "internvl_hf"):
        for folder in ("checkpoints", "chart_checkpoints"):
            checkpoint = f"lmms_flexselect/needle/{folder}/{family}"
            assert {f"{checkpoint}/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")} <= names
    assert {f"lmms_flexselect/tools/show/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert {"lmms_flexselect/py.typed", "lmms_flexselect/tools/reproduction/table.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_it_works_in_a_clean_environment(wheel, tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    }
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", binaries / "python", wheel], check=True)

    where = subprocess.run(
        [binaries / "python", "-c", "import lmms_flexselect; print(lmms_flexselect.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(tmp_path))

    # The README's line, as a shell runs it.
    line = (
        "lmms-eval --model qwen2_5_vl_flexselect --model_args pretrained=needle --tasks flexselect_needle_64 "
        '--include_path "$(lmms-flexselect path tasks)" --limit 12 --output_path results'
    )
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    found = list((tmp_path / "results").rglob("*_results.json"))
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads(found[0].read_text())
    assert results["results"]["flexselect_needle_64"]["needle_acc,none"] >= 0.9
