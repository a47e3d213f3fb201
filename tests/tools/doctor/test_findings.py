"""From machines and configs that are made up to findings and remedies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lmms_flexselect.cost.memory import GIB, Memory
from lmms_flexselect.tools.doctor.checkpoints import Checkpoint
from lmms_flexselect.tools.doctor.datasets import DataSet
from lmms_flexselect.tools.doctor.finding import NOTE, OK, PROBLEM
from lmms_flexselect.tools.doctor.fitting import of_config
from lmms_flexselect.tools.doctor.installation import of_machine
from lmms_flexselect.tools.doctor.machine import Gpu, Machine
from lmms_flexselect.tools.doctor.plan import Planned
from lmms_flexselect.tools.doctor.supplies import of_data, of_disk, of_tasks, of_token, of_weights

OURS = {
    "qwen2_5_vl_flexselect",
    "qwen3_vl_flexselect",
    "llava_vid_flexselect",
    "internvl_hf_flexselect",
    "internvl2_flexselect",
}
A100 = Gpu("NVIDIA A100-SXM4-80GB", 79 * GIB, 80 * GIB)
NODE = Machine(
    python="3.11.7",
    packages={"lmms-eval": "0.7.3", "torch": "2.15.0", "transformers": "5.23.0", "flash-attn": None},
    requirements=(
        "python>=3.10",
        "lmms-eval<0.8,>=0.7.3",
        "torch<3,>=2.6",
        "transformers<6,>=5.2",
        'flash-attn>=2.6; extra == "flash"',
    ),
    gpus=(A100,) * 8,
    memory=900 * GIB,
    cores=128,
    kernels={"eager": None, "sdpa": None, "flash_attention_2": None},
    decoders={"decord": None, "pyav": None},
    registered=frozenset({*OURS, "llava_vid"}),
    token=True,
    home=Path("/hf"),
    disk=3 * 10**12,
)
HERE = Checkpoint("lmms-lab/LLaVA-Video-7B-Qwen2", "cached", "/somewhere")
SMALL = Planned(
    "llava_vid_flexselect",
    ("videomme",),
    checkpoint=HERE,
    parameters=8_000_000_000,
    memory=Memory(15 * GIB, 0, GIB, GIB, 2 * GIB, GIB, GIB // 2),
    summary="selector=flexselect at layer 19",
)
LARGE = dataclasses.replace(
    SMALL, parameters=73_000_000_000, memory=Memory(136 * GIB, 0, 2 * GIB, GIB, 6 * GIB, GIB, 2 * GIB), spread=True
)


def changed(machine: Machine = NODE, **values) -> Machine:
    return dataclasses.replace(machine, **values)


def problems(findings) -> list[tuple[str, str, str]]:
    for finding in findings:
        assert finding.level in (OK, NOTE, PROBLEM)
        assert "\n" not in finding.text + finding.remedy
    return [(f.subject, f.text, f.remedy) for f in findings if f.level == PROBLEM]


def test_a_good_machine_and_a_config_that_fits():
    findings = [*of_machine(NODE), *of_config(NODE, [SMALL]), *of_weights(NODE, [SMALL])]
    assert problems(findings) == []
    text = "\n".join(f.text for f in findings)
    for part in ("lmms-eval 0.7.3, torch 2.15.0", "79.0 GiB of 80.0 GiB free", "and 6 more", "at layer 19"):
        assert part in text
    assert any(f.subject == "memory" and f.text.startswith("about 19.3 GiB on one GPU (weights") for f in findings)


@pytest.mark.parametrize(
    ("machine", "text", "remedy"),
    [
        (
            changed(packages={**NODE.packages, "transformers": "4.57.6"}),
            "transformers 4.57.6: this package wants <6,>=5.2",
            "pip install 'transformers<6,>=5.2'",
        ),
        (changed(packages={**NODE.packages, "torch": None}), "torch is not installed", "pip install 'torch<3,>=2.6'"),
        (changed(python="3.9.1"), "python 3.9.1: this package wants >=3.10", "make a new environment"),
        (
            changed(broken={"torch": "libcudart.so: no such file"}, decoders={}),
            "torch cannot be imported: libcudart.so: no such file",
            "pip install --force-reinstall torch",
        ),
        (changed(registered=frozenset(OURS - {"llava_vid_flexselect"})), "does not find llava_vid_flexselect", "rein"),
        (changed(registered=None), "lmms-eval cannot be asked", "mend the packages first"),
        (changed(decoders={"pyav": "no such library"}), "pyav: no such library", "pip install --force-reinstall"),
    ],
)
def test_what_is_wrong_with_an_installation(machine, text, remedy):
    ((_, found, fix),) = problems(of_machine(machine))
    assert text in found
    assert fix.startswith(remedy)


def test_a_pre_release_within_the_bounds_is_one():
    assert problems(of_machine(changed(packages={**NODE.packages, "torch": "2.16.0.dev1+cu132"}))) == []


def test_a_machine_without_a_gpu_is_no_problem_until_one_is_needed():
    bare = changed(gpus=())
    assert problems(of_machine(bare)) == []
    ((subject, text, remedy),) = problems(of_config(bare, [SMALL]))
    assert (subject, text) == ("memory", "8.0 billion parameters need about 19.3 GiB of a GPU, and there is none")
    assert remedy == "run it where a GPU has 20 GiB free"
    ((_, _, remedy),) = problems(of_config(bare, [SMALL, LARGE, SMALL]))
    assert remedy == "run it where there are 3 GPUs of 80 GiB"


def test_torch_that_does_not_see_the_gpu():
    blind = changed(gpus=(), gpu_complaint="torch is built without CUDA")
    (note,) = [f for f in of_machine(blind) if f.subject == "GPU"]
    assert (note.level, note.text) == (NOTE, "torch is built without CUDA")
    assert "pytorch.org" in note.remedy


def test_tiny_models_run_on_the_cpu_if_they_fit():
    tiny = dataclasses.replace(SMALL, parameters=1_700_000, memory=Memory(GIB // 100, 0, 0, GIB // 4, 0, 0, 0))
    (memory,) = [f for f in of_config(changed(gpus=()), [tiny]) if f.subject == "memory"]
    assert (memory.level, memory.text) == (OK, "1.7 million parameters run on the CPU: about 1.3 GiB")
    ((_, text, _),) = problems(of_config(changed(gpus=(), memory=GIB), [tiny]))
    assert text.endswith("about 1.3 GiB; 1.0 GiB are free")


@pytest.mark.parametrize(
    ("run", "gpus", "remedy"),
    [
        (SMALL, [Gpu("L4", 15 * GIB, 16 * GIB)], "a GPU of 20 GiB, or 2 such GPUs with device_map=auto, or fewer"),
        (SMALL, [Gpu("L4", 15 * GIB, 16 * GIB)] * 2, "device_map=auto spreads one copy over all GPUs"),
        (SMALL, [Gpu("A100", 10 * GIB, 80 * GIB)], "end what else runs on the GPU"),
        (LARGE, [A100], "a GPU of 146 GiB, or 3 such GPUs with device_map=auto"),
        (SMALL, [Gpu("old", GIB, GIB)], "a GPU of 20 GiB, or fewer frames"),
    ],
)
def test_gpus_that_are_too_small(run, gpus, remedy):
    ((subject, _, fix),) = problems(of_config(changed(gpus=tuple(gpus)), [run]))
    assert subject == "memory"
    assert fix.startswith(remedy)


def test_a_large_model_over_a_node():
    (memory,) = [f for f in of_config(NODE, [LARGE]) if f.subject == "memory"]
    assert memory.level == OK
    assert "on each of 8 GPUs" in memory.text


def test_kernels_and_decoders_that_a_run_asks_for():
    lacking = changed(kernels={**NODE.kernels, "flash_attention_2": "not installed"}, decoders={"decord": "broken"})
    run = dataclasses.replace(SMALL, kernel="flash_attention_2", decoder="decord")
    (kernel, decoder) = problems(of_config(lacking, [run]))
    assert kernel[:2] == ("attention", "flash_attention_2: not installed")
    assert kernel[2].endswith("or attn_implementation=sdpa")
    assert decoder == ("video", "decord: broken", "pip install --force-reinstall decord")
    assert problems(of_config(lacking, [SMALL])) == []
    ((_, text, _),) = problems(of_config(NODE, [dataclasses.replace(SMALL, kernel="best")]))
    assert text == "best: transformers does not know it"


def test_runs_that_would_be_refused():
    wrong = Planned("llava_vid_flexselect", ("videomme",), complaint="token_budget=0: must be " + "long " * 100)
    (finding,) = problems(of_config(NODE, [SMALL, wrong, wrong]))
    assert finding[1].startswith("number 2: token_budget=0: must be long")
    assert finding[1].endswith(" …")
    assert len(finding[1]) <= 160
    absent = Checkpoint("selectors/mine", "absent", None)
    ((_, _, fix),) = problems(of_config(NODE, [dataclasses.replace(wrong, checkpoint=HERE, selector=absent)]))
    assert fix.startswith("train it")
    ((_, _, fix),) = problems(of_config(NODE, [dataclasses.replace(wrong, checkpoint=absent)]))
    assert fix.startswith("hf download selectors/mine")
    (note,) = of_config(NODE, [Planned("llava_vid", ("videomme",), foreign=True)])
    assert (note.level, note.subject) == (NOTE, "model")


@pytest.mark.parametrize(
    ("state", "missing", "offline", "level", "text"),
    [
        ("cached", (), True, OK, "me/model: here"),
        ("folder", ("a.safetensors",), False, PROBLEM, "me/model: lacks 1 weight file(s), e.g. a.safetensors"),
        ("published", (), False, NOTE, "me/model: not here, to be downloaded (16.0 GB)"),
        ("published", (), True, PROBLEM, "me/model: not here (16.0 GB), and HF_HUB_OFFLINE is set"),
        ("partial", ("a", "b"), False, NOTE, "me/model: lacks 2 file(s), to be downloaded (16.0 GB)"),
    ],
)
def test_weights(state, missing, offline, level, text):
    run = dataclasses.replace(SMALL, checkpoint=Checkpoint("me/model", state, "/x", missing))
    (finding,) = of_weights(changed(offline=offline), [run, run])
    assert (finding.level, finding.text) == (level, text)
    assert bool(finding.remedy) == (level != OK)


def data(lacking=(), gated=False) -> DataSet:
    return DataSet("LVBench", Path("/hf/lvbench"), tuple(lacking), 62, gated, "lmms-flexselect prepare lvbench")


@pytest.mark.parametrize(
    ("data_set", "machine", "level", "remedy"),
    [
        (data(), NODE, OK, ""),
        (data(["a", "b"]), NODE, NOTE, "lmms-flexselect prepare lvbench (62 GB)"),
        (data(["a"], gated=True), NODE, NOTE, "lmms-flexselect prepare lvbench (62 GB)"),
        (data(["a"], gated=True), changed(token=False), PROBLEM, "accept its terms on the hub, hf auth login, then"),
        (data(["a"]), changed(offline=True), PROBLEM, "lmms-flexselect prepare lvbench (62 GB) where the hub can"),
    ],
)
def test_data_sets(data_set, machine, level, remedy):
    (finding,) = of_data(machine, [data_set])
    assert finding.level == level
    assert finding.remedy.startswith(remedy)
    assert ("(and 1 more)" in finding.text) == (len(data_set.lacking) > 1)


def test_tasks_that_are_not_known():
    (note,) = of_data(NODE, [], ["mmmu_val"])
    assert (note.level, note.text) == (NOTE, "not known here, so not looked for: mmmu_val")
    ((_, text, remedy),) = problems(of_tasks(["videome"]))
    assert text == "lmms-eval finds no videome"
    assert "--include_path" in remedy
    assert of_tasks([]) == []


def test_disk():
    run = dataclasses.replace(SMALL, checkpoint=Checkpoint("me/model", "published", "/x"))
    assert of_disk(NODE, [SMALL], [data()]).text == "3000 GB free in /hf, nothing to download"
    enough = of_disk(NODE, [run, run], [data(["a"])])
    assert (enough.level, enough.text) == (OK, "3000 GB free in /hf, 140 GB to download and unpack")
    full = of_disk(changed(disk=100 * 10**9), [run], [data(["a"])])
    assert (full.level, full.remedy) == (PROBLEM, "make room, or set HF_HOME to a larger disk")


def test_the_hubs_token():
    assert of_token(NODE, []).level == OK
    bare = changed(token=False)
    assert of_token(bare, [data()]).text == "no token (needed only for gated repositories)"
    asked = of_token(bare, [data(["a"], gated=True)])
    assert (asked.text, asked.remedy) == ("no token (needed for LVBench)", "hf auth login")
