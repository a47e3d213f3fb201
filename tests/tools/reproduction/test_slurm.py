"""The Slurm scripts, run with stand-ins for what a cluster has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[3] / "run_configs"
# Each says its name and arguments; those that evaluate leave a results file behind if they are told to.
STAND_INS = {
    "lmms-flexselect": 'if [ "$1" = path ]; then echo "/installed/$2"; else echo "doctor $2"; fi',
    "scontrol": "printf 'node7\\nnode8\\n'",
    "srun": 'exec "$@"',
    "accelerate": 'echo "accelerate $*"; [ -z "$WRITES" ] || { mkdir -p "$WRITES"; touch "$WRITES/x_results.json"; }',
    "lmms-eval": 'echo "lmms-eval $*"; [ -z "$WRITES" ] || { mkdir -p "$WRITES"; touch "$WRITES/x_results.json"; }',
}


@pytest.fixture
def submit(tmp_path):
    """Run a script on a config as a job would."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, body in STAND_INS.items():
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n")
        (binaries / name).chmod(0o755)

    def run(script: str, config: str, writes: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **environment, "PATH": f"{binaries}:{os.environ['PATH']}", "WRITES": writes}
        words = ["bash", str(CONFIGS / "slurm" / script), str(CONFIGS / config), "--limit", "8"]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


NODES = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_PROCID": "1", "SLURM_GPUS_ON_NODE": "8"}


def test_a_copy_a_gpu(submit):
    config = "paper/llava_video_7b_reference.yaml"
    done = submit("copy_a_gpu.sbatch", config, writes="results/paper/llava_video_7b_reference/m", **NODES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"doctor {CONFIGS / config}",
        "accelerate launch --multi_gpu --num_machines 2 --machine_rank 1 --num_processes 16 --main_process_ip node7 "
        f"--main_process_port 29500 -m lmms_eval --config {CONFIGS / config} --include_path /installed/tasks --limit 8",
    ]


def test_a_whole_node(submit):
    config = "stock/qwen2_5_vl_72b_none.yaml"
    writes = "results/stock/qwen2_5_vl_72b_none/lvbench"
    done = submit("whole_node.sbatch", config, writes=writes, SLURM_ARRAY_TASK_ID="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == (
        f"lmms-eval --config {CONFIGS / config} --tasks lvbench --output_path {writes} "
        "--include_path /installed/tasks --limit 8"
    )


@pytest.mark.parametrize(
    ("script", "config", "environment"),
    [
        ("copy_a_gpu.sbatch", "paper/llava_video_7b_none.yaml", NODES),
        ("whole_node.sbatch", "paper/llava_video_72b_none.yaml", {"SLURM_ARRAY_TASK_ID": "0"}),
    ],
)
def test_no_results_are_a_failure_though_lmms_eval_exits_with_0(submit, script, config, environment):
    done = submit(script, config, **environment)
    assert done.returncode == 1
    assert "no results in results/paper/" in done.stderr


def test_a_job_that_is_no_array_is_told_so(submit):
    done = submit("whole_node.sbatch", "paper/llava_video_72b_none.yaml")
    assert done.returncode == 1
    assert "give sbatch --array 0-3" in done.stderr
