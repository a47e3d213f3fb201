"""``lmms-flexselect demo``: the needle benchmark through lmms-eval, as a table and two pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_flexselect.cli import installed_path
from lmms_flexselect.errors import FlexSelectError

SELECTORS = ("none", "random", "uniform", "reference")
TASK_PREFIX = "flexselect_needle_"


@dataclass
class Measured:
    """One selector at one video length.

    Attributes
    ----------
    selector
        Of the run.
    units
        Length of the videos in temporal units.
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

    selector: str
    units: int
    accuracy: float
    questions: int
    tokens_in: float
    tokens_kept: float
    first_token: float
    memory: float


def run(output: Path, config: Path | None = None) -> list[Measured]:
    """Run the demo's config with the real ``lmms-eval`` command in the folder `output`; returns what it measured.

    Raises
    ------
    FlexSelectError
        If a run wrote no results; the message names its log.
    """
    output.mkdir(parents=True, exist_ok=True)
    config = config or installed_path("run_configs") / "demo.yaml"
    tasks = installed_path("tasks")
    command = [sys.executable, "-m", "lmms_eval", "--config", str(config), "--include_path", str(tasks)]
    log = output / "lmms_eval.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    started = time.time()
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=output, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        announced = -1
        while process.poll() is None:
            done = sum(bool(_results(output / "results" / name, started)) for name in SELECTORS)
            if done != announced:
                print(f"{time.time() - started:4.0f} s: {done} of {len(SELECTORS)} runs done", flush=True)
                announced = done
            time.sleep(0.5)
    measured: list[Measured] = []
    for selector in SELECTORS:
        found = _results(output / "results" / selector, started)
        if not found:
            raise FlexSelectError(f"the run with selector={selector} wrote no results; see {log}")
        measured += read_results(selector, json.loads(found[-1].read_text()))
    return measured


def _results(folder: Path, since: float) -> list[Path]:
    return sorted(path for path in folder.rglob("*_results.json") if path.stat().st_mtime >= since)


def read_results(selector: str, results: dict[str, Any]) -> list[Measured]:
    """What one lmms-eval results file says about each needle task."""
    block = results["config"]["resolved_cli_args"]["flexselect"]["by_task"]
    measured = []
    for task, values in results["results"].items():
        if task in block:
            own = block[task]
            measured.append(
                Measured(
                    selector,
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
    """The measurements as text, one line for each selector and length."""
    lines = [
        "frames  selector   accuracy  visual tokens  first token  peak memory",
        "-" * 68,
    ]
    for units in sorted({m.units for m in measured}):
        for m in (m for m in measured if m.units == units):
            tokens = f"{m.tokens_in:.0f} → {m.tokens_kept:.0f}"
            lines.append(
                f"{2 * units:>6}  {m.selector:<9}  {m.accuracy:>8.1%}  {tokens:>13}  "
                f"{m.first_token * 1000:>8.0f} ms  {m.memory:>7.2f} GiB"
            )
        lines.append("")
    return "\n".join(lines)


def main(output: Path) -> int:
    """Run, print the table, write ``table.txt`` and the two pictures; returns the exit status."""
    from lmms_flexselect.pictures import accuracy_over_length, kept_tokens

    print(f"asking the tiny Qwen2.5-VL through lmms-eval, with {len(SELECTORS)} selectors; log: {output}/lmms_eval.log")
    measured = run(output)
    text = table(measured)
    print(text)
    (output / "table.txt").write_text(text)
    longest = max(m.units for m in measured)
    pictures = [output / "accuracy_over_length.png", output / "kept_tokens.png"]
    accuracy_over_length(measured, pictures[0])
    kept_tokens(output / "selection" / f"{TASK_PREFIX}{min(64, longest)}__test__0.npz", pictures[1])
    print("pictures:", *pictures)
    return 0
