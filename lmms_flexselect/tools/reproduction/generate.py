"""Writes run_configs/{paper,stock,ablations} from `table.yaml`.

python -m lmms_flexselect.tools.reproduction.generate
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lmms_flexselect.tools.installed import installed_path
from lmms_flexselect.tools.reproduction.rows import METRICS, RunConfig, facts, runs

FOLDERS = ("paper", "stock", "ablations")
_WITH = {"none": "all tokens", "flexselect": "FlexSelect", "lite": "FlexSelect-Lite"}
_PLACES = 'C="$(lmms-flexselect path run_configs)" T="$(lmms-flexselect path tasks)"'


def render(run: RunConfig) -> str:
    """The file of a run: what it is to reproduce, how it is started, and what lmms-eval reads."""
    package = "lmms_flexselect/tools/reproduction"
    made_by = f"Made by python -m {package.replace('/', '.')}.generate: change {package}/table.yaml."
    comment = [*_heading(run), "", "To run it:", f"  {_PLACES}", *_training(run), *_launch(run), "", made_by]
    arguments = ",\n".join(f"  {name}={_word(value)}" for name, value in run.arguments.items())
    return "\n".join(
        [
            *(f"# {line}".rstrip() for line in comment),
            f"model: {run.model}",
            "model_args: >-",
            arguments,
            f"tasks: {','.join(run.tasks)}",
            "batch_size: 1",
            "log_samples: true",
            f"output_path: results/{run.path.removesuffix('.yaml')}",
            "",
        ]
    )


def _heading(run: RunConfig) -> list[str]:
    own = "the paper's protocol" if run.protocol == "paper" else "lmms-eval's stock tasks"
    what = "Table 1" if run.about is None else "Ablation"
    lines = [f"{what}: {run.row} with {_WITH[run.selector]}, by {own}."]
    if run.about is not None:
        lines += [f"What varies: {run.about}."]
    numbers = ", ".join(f"{METRICS[name]} {value}" for name, value in run.published.items())
    lines += [f"Published: {numbers}." if numbers else "Published: nothing."]
    if run.protocol == "stock":
        lines += ["Those are by the paper's protocol, whose prompts, answer lengths and parsers differ from these."]
    if run.selector == "none":
        lines += ["How many frames the paper's baseline read is not known; docs/reproduction.md says what was chosen."]
    return lines


def _training(run: RunConfig) -> list[str]:
    if not run.train:
        return []
    training = facts()["training"]
    files = " ".join(f'"$C/train/{name}.yaml"' for name in run.train)
    return [
        "Train its selector first:",
        f"  lmms-flexselect train {files} \\",
        f"    --data {training['data']} --videos {training['videos']} --score_cache scores \\",
        f"    --output_dir {run.arguments['selector_path']}",
    ]


def _launch(run: RunConfig) -> list[str]:
    rest = f'--config "$C/{run.path}" --include_path "$T"'
    if run.fills_a_node:
        return [
            "One copy of the model over all GPUs of a node:",
            f"  lmms-eval {rest}",
            "Several nodes, a benchmark on each (a model that is spread cannot run in several processes):",
            f'  sbatch --array 0-{len(run.tasks) - 1} "$C/slurm/whole_node.sbatch" "$C/{run.path}"',
        ]
    return [
        "A copy of the model on each of 8 GPUs:",
        "  accelerate launch --num_processes 8 -m lmms_eval \\",
        f"    {rest}",
        "Two nodes of 8, on each with its own RANK, 0 or 1, and in HEAD the name of the first:",
        "  accelerate launch --multi_gpu --num_machines 2 --machine_rank $RANK --num_processes 16 \\",
        "    --main_process_ip $HEAD --main_process_port 29500 -m lmms_eval \\",
        f"    {rest}",
        "The same by Slurm:",
        f'  sbatch --nodes 2 "$C/slurm/copy_a_gpu.sbatch" "$C/{run.path}"',
    ]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def write(folder: Path) -> list[Path]:
    """Write all files below `folder`, and remove those of the three sub-folders that no run has any more."""
    texts = {folder / run.path: render(run) for run in runs()}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for stale in {path for name in FOLDERS for path in (folder / name).rglob("*.yaml")} - set(texts):
        stale.unlink()
    return list(texts)


def main(words: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lmms_flexselect.tools.reproduction.generate", description=__doc__)
    parser.add_argument("--output", type=Path, help="folder to write to, if not the installed run_configs")
    folder = parser.parse_args(words).output or installed_path("run_configs")
    print(f"{len(write(folder))} files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
