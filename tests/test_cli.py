"""``lmms-flexselect path``: where the installed files are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lmms_flexselect
from lmms_flexselect.cli import main
from lmms_flexselect.tools.installed import installed_path

COMMAND = Path(sys.executable).with_name("lmms-flexselect")


@pytest.mark.parametrize(("place", "holds"), [("tasks", "needle/*.yaml"), ("run_configs", "__init__.py")])
def test_path(capsys, place, holds):
    assert main(["path", place]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    folder = Path(printed.strip())
    assert folder.is_absolute()
    assert list(folder.glob(holds))


@pytest.mark.parametrize(("name", "folder_name"), [("needle", "checkpoints"), ("needle_chart", "chart_checkpoints")])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_vid"])
def test_path_of_a_needle_model(capsys, family, name, folder_name):
    assert main(["path", f"{name}/{family}"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == Path(lmms_flexselect.__file__).parent / "needle" / folder_name / family
    assert (folder / "model.safetensors").is_file()


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(FileNotFoundError, match=r"lmms_flexselect\.nowhere is not installed"):
        installed_path("nowhere")


@pytest.mark.parametrize("arguments", [[], ["path"], ["path", "elsewhere"], ["no_such_command"]])
def test_a_wrong_command_line_is_explained(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: lmms-flexselect" in capsys.readouterr().err


def test_the_installed_command(tmp_path):
    """From any folder, and without loading what it does not need: it answers within shell scripts."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(COMMAND), "path", "tasks"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()) == installed_path("tasks")
    imported = {line.rsplit("|", 1)[-1].strip() for line in run.stderr.splitlines()}
    assert "lmms_flexselect.cli" in imported
    assert not {"torch", "transformers", "lmms_eval"} & imported
