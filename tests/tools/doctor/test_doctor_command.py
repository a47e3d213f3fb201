"""``lmms-flexselect doctor`` on this machine, and what it looks at here."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from lmms_eval.tasks import TaskManager

from lmms_flexselect import cli
from lmms_flexselect.tools.doctor import command, machine
from lmms_flexselect.tools.doctor.datasets import DataSet, data_sets
from lmms_flexselect.tools.doctor.machine import existing, look
from lmms_flexselect.tools.installed import installed_path


@pytest.fixture(scope="module")
def here():
    return look()


@pytest.fixture(scope="module")
def index():
    """Of our tasks alone, once: lmms-eval's own take it seconds."""
    return functools.cache(functools.partial(TaskManager, include_defaults=False))


@pytest.fixture
def doctor(capsys, monkeypatch, here, index):
    """The command; looks once for all, and leaves this process' logging as it is."""
    monkeypatch.setattr(command, "look", lambda: here)
    monkeypatch.setattr("lmms_eval.tasks.TaskManager", index)
    monkeypatch.setattr(command, "_quiet", lambda: None)

    def run(*words: str) -> tuple[int, list[str]]:
        status = cli.main(["doctor", *words])
        return status, capsys.readouterr().out.splitlines()

    return run


def test_looking_around(here):
    assert here.broken == {}
    assert here.packages["lmms-eval"] >= "0.7.3"
    assert here.packages["flash-attn"] is None or here.gpus
    assert here.decoders == {"decord": None, "pyav": None}
    assert {"llava_vid_flexselect", "internvl2_flexselect", "llava_vid"} <= here.registered
    assert here.requirements[0] == "python>=3.10"
    assert here.memory > 2**28
    assert here.disk > 0
    assert here.offline  # the tests' own environment


def test_broken_parts_are_complaints_and_no_crashes(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("libav.so: not found\nmore")

    monkeypatch.setattr("lmms_flexselect.video.reading.open_video", fail)
    assert machine._decoders() == {"decord": "libav.so: not found", "pyav": "libav.so: not found"}
    monkeypatch.setattr("lmms_flexselect.needle.videos.write_video", fail)
    assert "no video could be written to try it on" in str(machine._decoders()["decord"])
    assert machine._complaint("no_such_module_at_all") == "No module named 'no_such_module_at_all'"


def test_the_nearest_folder(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "file").touch()
    assert existing(tmp_path / "file") == tmp_path


def test_without_a_config(doctor):
    status, lines = doctor()
    assert status == 0, lines
    assert lines[-1] == "the installation is sound"
    assert not [line for line in lines if line.startswith("PROBLEM")]
    assert len([line for line in lines if line.split()[1] == "data"]) == 4
    assert len(lines) <= 24


def test_the_demo_can_run(doctor):
    config = str(installed_path("run_configs") / "demo.yaml")
    status, lines = doctor(config)
    assert (status, lines[-1]) == (0, f"{config} can run here")


def test_a_7b_model_cannot_run_without_a_gpu(doctor, here, tmp_path):
    if here.gpus:
        pytest.skip("there is one")
    config = str(installed_path("run_configs") / "paper" / "llava_video_7b_reference.yaml")
    status, lines = doctor(config)
    assert status == 1
    assert lines[-1].startswith(f"{config} cannot run here: ")
    (line,) = [line for line in lines if line.split()[1] == "memory"]
    assert line.startswith("PROBLEM")
    assert "8.0 billion parameters need about 18.8 GiB of a GPU, and there is none -> run it where" in line
    assert len(lines) <= 24


def test_broken_configs(doctor, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: [a\n")
    status, lines = doctor(str(path))
    assert status == 1
    assert f"PROBLEM  config     {path}: not YAML" in lines[-2]
    path.write_text("model: llava_vid_flexselect\nmodel_args: pretrained=needle,dtype=int8\ntasks: needle_6\n")
    status, lines = doctor(str(path))
    assert status == 1
    assert [line.split()[1] for line in lines if line.startswith("PROBLEM")] == ["run", "tasks"]
    assert any("dtype=int8: must be one of bfloat16, float16, float32 -> correct it" in line for line in lines)


def test_groups_and_tags_come_to_their_tasks(monkeypatch, index):
    monkeypatch.setattr("lmms_eval.tasks.TaskManager", index)
    unknown, leaves = command._leaf_tasks(["flexselect_needle", "flexselect_paper_lvbench", "no_such", "no_such"], None)
    assert unknown == ["no_such"]
    needle = [f"flexselect_needle_{units}" for units in (16, 64, 128, 256, 512)]
    assert sorted(leaves) == sorted([*needle, "flexselect_paper_lvbench"])


def test_an_installation_that_cannot_be_asked_ends_there(doctor, monkeypatch, here):
    broken = dataclasses.replace(here, broken={"lmms_eval": "no torch"}, registered=None)
    monkeypatch.setattr(command, "look", lambda: broken)
    status, lines = doctor(str(installed_path("run_configs") / "demo.yaml"))
    assert status == 1
    assert any("lmms_eval cannot be imported: no torch -> pip install" in line for line in lines)


def test_without_torch_it_still_answers():
    """In a process of its own: nothing that the report needs may import what it reports on."""
    script = "import sys; sys.modules['torch'] = None; from lmms_flexselect.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert "torch cannot be imported: import of torch halted" in lines[0]
    assert lines[0].endswith("-> pip install --force-reinstall torch")


def test_data_sets_of_tasks(hf_home):
    sets, unknown = data_sets(["lvbench", "flexselect_needle_16", "mmmu_val"])
    assert unknown == ["mmmu_val"]
    (found,) = sets
    assert isinstance(found, DataSet)
    assert found.title == "LVBench"
    assert found.folder == Path(hf_home) / "lvbench"
    assert found.lacking
    assert found.command == "lmms-flexselect prepare lvbench"
    both = data_sets(["longvideobench_val_v", "flexselect_paper_longvideobench_sub"])[0]
    assert [each.gated for each in both] == [True]
