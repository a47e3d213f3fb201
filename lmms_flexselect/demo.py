"""``lmms-flexselect demo``: the needle benchmark through lmms-eval, as a table and two pictures."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.cli import installed_path
from lmms_flexselect.errors import FlexSelectError, check_matplotlib

TASK_PREFIX = "flexselect_needle_"
# Name, and how many frames it reads of a temporal unit, which is one second and two frames of video.
MODELS = {
    "qwen2_5_vl_flexselect": ("Qwen2.5-VL", 2),
    "llava_vid_flexselect": ("LLaVA-Video", 1),
    "internvl_hf_flexselect": ("InternVL", 1),
}


@dataclass
class Measured:
    """One model with one selector at one video length.

    Attributes
    ----------
    model
        As on lmms-eval's command line.
    selector
        Of the run.
    units
        Length of the videos in temporal units: seconds.
    accuracy
        0..1.
    questions
        How many were asked.
    tokens_in, tokens_kept
        Visual tokens before and after selection, mean.
    first_token
        Time to first token in seconds, mean.
    memory
        Peak memory in GiB.
    """

    model: str
    selector: str
    units: int
    accuracy: float
    questions: int
    tokens_in: float
    tokens_kept: float
    first_token: float
    memory: float

    @property
    def frames(self) -> int:
        """How many frames the model reads."""
        return MODELS[self.model][1] * self.units


def run(output: Path, config: Path | None = None) -> list[Measured]:
    """Run the demo's config with the real ``lmms-eval`` command in the folder `output`; returns what it measured.

    Raises
    ------
    FlexSelectError
        If a run wrote no results; the message names its log.
    """
    output.mkdir(parents=True, exist_ok=True)
    config = config or installed_path("run_configs") / "demo.yaml"
    runs = yaml.safe_load(config.read_text())
    tasks = installed_path("tasks")
    command = [sys.executable, "-m", "lmms_eval", "--config", str(config), "--include_path", str(tasks)]
    log = output / "lmms_eval.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    started = time.time()
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=output, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        announced = -1
        while process.poll() is None:
            done = sum(bool(_results(output / each["output_path"], started)) for each in runs)
            if done != announced:
                print(f"{time.time() - started:4.0f} s: {done} of {len(runs)} runs done", flush=True)
                announced = done
            time.sleep(0.5)
    measured: list[Measured] = []
    for each in runs:
        found = _results(output / each["output_path"], started)
        if not found:
            raise FlexSelectError(f"{each['model']} with {each['model_args']} wrote no results; see {log}")
        measured += read_results(each["model"], json.loads(found[-1].read_text()))
    return measured


def _results(folder: Path, since: float) -> list[Path]:
    return sorted(path for path in folder.rglob("*_results.json") if path.stat().st_mtime >= since)


def read_results(model: str, results: dict[str, Any]) -> list[Measured]:
    """What one lmms-eval results file says about each needle task."""
    block = results["config"]["resolved_cli_args"]["flexselect"]
    measured = []
    for task, values in results["results"].items():
        if task in block["by_task"]:
            own = block["by_task"][task]
            measured.append(
                Measured(
                    model,
                    block["options"]["selector"],
                    int(task.removeprefix(TASK_PREFIX)),
                    float(values["needle_acc,none"]),
                    int(own["samples"]),
                    own["visual_tokens"],
                    own["visual_tokens_kept"],
                    own["time_to_first_token_seconds"],
                    own["peak_memory_gib"],
                )
            )
    return sorted(measured, key=lambda m: m.units)


def table(measured: list[Measured]) -> str:
    """The measurements as text: a block for each model and length, a line for each selector."""
    lines = [
        "model        frames  selector   accuracy  visual tokens  first token  peak memory",
        "-" * 81,
    ]
    ordered = sorted(measured, key=lambda m: (list(MODELS).index(m.model), m.units))  # selectors keep their order
    for (model, _), block in groupby(ordered, key=lambda m: (m.model, m.units)):
        for m in block:
            tokens = f"{m.tokens_in:.0f} → {m.tokens_kept:.0f}"
            lines.append(
                f"{MODELS[model][0]:<11}  {m.frames:>6}  {m.selector:<9}  {m.accuracy:>8.1%}  {tokens:>13}  "
                f"{m.first_token * 1000:>8.0f} ms  {m.memory:>7.2f} GiB"
            )
        lines.append("")
    return "\n".join(lines)


def command(words: list[str]) -> int:
    """``lmms-flexselect demo [--output FOLDER]``."""
    parser = argparse.ArgumentParser(prog="lmms-flexselect demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for results and pictures")
    return main(parser.parse_args(words).output)


def main(output: Path) -> int:
    """Run, print the table, write ``table.txt`` and the two pictures; returns the exit status."""
    check_matplotlib()
    from lmms_flexselect.pictures import accuracy_over_length
    from lmms_flexselect.show.sheet import dumped_sheet

    *names, last = (name for name, _ in MODELS.values())
    print(f"asking a tiny {', '.join(names)} and {last} through lmms-eval; log: {output}/lmms_eval.log")
    measured = run(output)
    text = table(measured)
    print(text)
    (output / "table.txt").write_text(text)
    longest = max(m.units for m in measured)
    pictures = [output / "accuracy_over_length.png", output / "kept_tokens.png"]
    accuracy_over_length(measured, pictures[0])
    dumped_sheet(output / "selection" / f"{TASK_PREFIX}{min(64, longest)}__test__0.npz", pictures[1])
    print("pictures:", *pictures)
    return 0
