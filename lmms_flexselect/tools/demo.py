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

import numpy as np

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.spec import FamilySpec, family_of_model
from lmms_flexselect.method.registry import selector_class
from lmms_flexselect.needle import TASK_PREFIX
from lmms_flexselect.tools.installed import demo_runs, installed_path
from lmms_flexselect.tools.plotting import pyplot


@dataclass
class DemoResult:
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
        How many were answered.
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
    def family(self) -> FamilySpec:
        """The model's."""
        spec = family_of_model(self.model)
        assert spec is not None
        return spec

    @property
    def frames(self) -> int:
        """How many frames the model reads: a temporal unit of the videos is one of the family's."""
        return self.family.frames_per_unit * self.units


def run(output: Path, config: Path | None = None) -> list[DemoResult]:
    """Run the demo's config with the real ``lmms-eval`` command in the folder `output`; returns what it measured.

    Raises
    ------
    FlexSelectError
        If a run wrote no results; the message names its log.
    """
    output.mkdir(parents=True, exist_ok=True)
    config = config or installed_path("run_configs") / "demo.yaml"
    runs = demo_runs(config)
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
    measured: list[DemoResult] = []
    for each in runs:
        found = _results(output / each["output_path"], started)
        if not found:
            raise FlexSelectError(f"{each['model']} with {each['model_args']} wrote no results; see {log}")
        measured += read_results(each["model"], json.loads(found[-1].read_text()))
    return measured


def _results(folder: Path, since: float) -> list[Path]:
    return sorted(path for path in folder.rglob("*_results.json") if path.stat().st_mtime >= since)


def read_results(model: str, results: dict[str, Any]) -> list[DemoResult]:
    """What one lmms-eval results file says about each needle task."""
    block = results["config"]["resolved_cli_args"]["flexselect"]
    measured = []
    for task, values in results["results"].items():
        if task in block["by_task"]:
            own = block["by_task"][task]
            measured.append(
                DemoResult(
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
    return sorted(measured, key=lambda r: r.units)


def table(results: list[DemoResult]) -> str:
    """The results as text: a block for each model and length, a line for each selector."""
    lines = [
        "model        frames  selector    accuracy  visual tokens  first token  peak memory",
        "-" * 82,
    ]
    models = list(dict.fromkeys(r.model for r in results))
    ordered = sorted(results, key=lambda r: (models.index(r.model), r.units))  # selectors keep their order
    for _, block in groupby(ordered, key=lambda r: (r.model, r.units)):
        for r in block:
            tokens = f"{r.tokens_in:.0f} → {r.tokens_kept:.0f}"
            lines.append(
                f"{r.family.title:<11}  {r.frames:>6}  {r.selector:<10}  {r.accuracy:>8.1%}  {tokens:>13}  "
                f"{r.first_token * 1000:>8.0f} ms  {r.memory:>7.2f} GiB"
            )
        lines.append("")
    return "\n".join(lines)


def accuracy_over_length(results: list[DemoResult], path: Path) -> None:
    """A panel for each model, a line for each selector, standard errors shaded; written as PNG."""
    plt = pyplot()
    models = list(dict.fromkeys(r.model for r in results))
    figure, panels = plt.subplots(
        1, len(models), figsize=(1.2 + 5.4 * len(models), 4.6), layout="constrained", sharey=True, squeeze=False
    )
    for model, axes in zip(models, panels[0], strict=True):
        of_model = [r for r in results if r.model == model]
        _accuracy_panel(axes, of_model)
        budget = round(min(r.tokens_kept for r in of_model))
        axes.set_title(f"{of_model[0].family.title}: answers from {budget} visual tokens", loc="left", fontsize=11)
    panels[0][0].set(ylim=(0, 1.04), ylabel="needle questions answered")
    panels[0][0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.14))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _accuracy_panel(axes: Any, results: list[DemoResult]) -> None:
    for selector in dict.fromkeys(r.selector for r in results):
        own = sorted((r for r in results if r.selector == selector), key=lambda r: r.units)
        frames = np.array([r.frames for r in own])
        accuracy = np.array([r.accuracy for r in own])
        error = np.sqrt(accuracy * (1 - accuracy) / np.array([r.questions for r in own]))
        shown = selector_class(selector)
        look = {"marker": getattr(shown, "marker", "."), "color": getattr(shown, "colour", None)}
        (line,) = axes.plot(frames, accuracy, lw=2.2, label=getattr(shown, "title", selector), **look)
        axes.fill_between(frames, accuracy - error, accuracy + error, alpha=0.15, lw=0, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(frames, [str(f) for f in frames])
    axes.axhline(1 / 8, color="black", lw=0.8, ls=":")
    axes.annotate("guessing", (frames[0], 1 / 8), textcoords="offset points", xytext=(0, 4), fontsize=8)
    axes.set_xlabel("frames read")
    axes.spines[["top", "right"]].set_visible(False)


def command(words: list[str]) -> int:
    """``lmms-flexselect demo [--output FOLDER]``."""
    parser = argparse.ArgumentParser(prog="lmms-flexselect demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for results and pictures")
    return main(parser.parse_args(words).output)


def main(output: Path) -> int:
    """Run, print the table, write ``table.txt`` and the two pictures; returns the exit status."""
    from lmms_flexselect.tools.show.sheet import dumped_sheet

    pyplot()
    models = dict.fromkeys(run["model"] for run in demo_runs())
    *titles, last = (spec.title for spec in map(family_of_model, models) if spec is not None)
    print(f"asking a tiny {', '.join(titles)} and {last} through lmms-eval; log: {output}/lmms_eval.log")
    results = run(output)
    text = table(results)
    print(text)
    (output / "table.txt").write_text(text)
    longest = max(r.units for r in results)
    pictures = [output / "accuracy_over_length.png", output / "kept_tokens.png"]
    accuracy_over_length(results, pictures[0])
    dumped_sheet(output / "selection" / f"{TASK_PREFIX}{min(64, longest)}__test__0.npz", pictures[1])
    print("pictures:", *pictures)
    return 0
