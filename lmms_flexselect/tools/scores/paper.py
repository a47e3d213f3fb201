"""The paper's numbers, which run each belongs to, and what a run does otherwise than the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from lmms_flexselect.checkpoints import published_model
from lmms_flexselect.families.spec import families
from lmms_flexselect.tools.reproduction.rows import RunConfig, facts, table_1
from lmms_flexselect.tools.scores.runs import Run

# Columns of the paper's table 1 by lmms-eval's tasks, its own and those of the paper's protocol.
_COLUMNS = {
    "videomme": "videomme",
    "mlvu_dev": "mlvu",
    "longvideobench_val_v": "longvb",
    "lvbench": "lvbench",
    "flexselect_paper_videomme": "videomme",
    "flexselect_paper_mlvu": "mlvu",
    "flexselect_paper_longvideobench": "longvb",
    "flexselect_paper_longvideobench_sub": "longvb",
    "flexselect_paper_lvbench": "lvbench",
}
LONG = ", long"
"""Behind the name of a VideoMME task: its long videos alone."""

_SUBTITLES = "flexselect_paper_longvideobench_sub"
# Arguments of the paper's runs that choose files and hardware, or that no answer of its own is known to depend on.
_NOT_COMPARED = {"pretrained", "selector", "selector_path", "dtype", "device_map", "strict", "attn_implementation"}


@cache
def frames_options() -> frozenset[str]:
    """What families call the option that says how many frames are read."""
    return frozenset(spec.frames_option for spec in families().values())


def published(run: Run, task: str) -> float | None:
    """Accuracy in percent of the row of table 1 that a run belongs to, by checkpoint and selector; None if to none."""
    name = model_of(run)
    column = _COLUMNS.get(task.removesuffix(LONG), "")
    column += "_long" if task.endswith(LONG) else ""
    rows = (row for row in facts()["published"]["table1"] if (row["model"], row["selector"]) == (name, run.selector))
    return next((float(row[column]) for row in rows if column in row), None)


def ablation(option: str, task: str) -> tuple[str, dict[float, float]] | None:
    """The paper's curve over an option: whose it is, and accuracy in percent by value; None if it has none of the task.

    ``frames``, ``token_budget``, ``share`` (percent of the training data) and ``selector_size`` (billions of
    parameters); all but the last are of VideoMME alone.
    """
    column = _COLUMNS.get(task)
    about = next((each for each in facts()["ablations"].values() if each.get("over") == option), None)
    if about is None or column is None:
        return None
    name = ", ".join(["paper", about["model"], *([about["at"]] if "at" in about else [])])
    numbers = facts()["published"]
    if about["published"] in numbers:
        return name, {float(row["params"][:-1]): row[column] for row in numbers[about["published"]]}
    return (name, numbers["ablations"][about["published"]]) if column == "videomme" else None


def model_of(run: Run) -> str | None:
    """The paper's name of a run's model; None if it is not the paper's."""
    name = published_model(run.checkpoint)
    return name if name in facts()["models"] else None


def departures(run: Run, task: str) -> list[str]:
    """What a run of one of the paper's models does otherwise than the paper's, a phrase each."""
    papers = _paper_run(model_of(run), run.selector)
    frames = frames_options() | {"fps"}
    unknown = frames if run.selector == "none" else set()
    found = [
        f"{name}={run.options[name]}, the paper's {value}"
        for name, value in _compared(papers.arguments).items()
        if name in run.options and name not in unknown and run.options[name] != value
    ]
    if run.selector == "none":
        read = ", ".join(f"{name}={run.options[name]}" for name in sorted(frames & set(run.options)))
        found.append(f"{read}: how many frames the paper's baseline read is not known")
    if not task.startswith("flexselect_paper_"):
        found.append("lmms-eval's prompts and parsers, not the paper's")
    elif _COLUMNS.get(task) == "longvb" and task not in papers.tasks:
        found.append(f"{'with' if task == _SUBTITLES else 'without'} subtitles, unlike the paper's")
    return found


def _paper_run(model: str | None, selector: str) -> RunConfig:
    runs = (run for run in table_1() if run.protocol == "paper")
    return next(run for run in runs if (run.row, run.selector) == (model, selector))


def _compared(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in _NOT_COMPARED}
