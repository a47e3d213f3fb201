"""The paper's numbers, which run each belongs to, and what a run does otherwise than the paper's."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from lmms_flexselect.checkpoints import published_model
from lmms_flexselect.families.spec import families, published_models
from lmms_flexselect.presets import preset
from lmms_flexselect.scores.runs import Run

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
FRAMES = {*(family.frames_option for family in families().values()), "fps"}
"""What families call the option that says how many frames are read."""

_SELECTING = {"reference_layer", "token_budget", "max_frames_per_set", "reduction", "budget_remainder"}


# What the paper ran its models with beside their presets.
_OWN_OPTIONS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"seconds_per_unit": 1.0},
    "llava_vid": {},
    "internvl_hf": {"frame_labels": "bare"},
}
_TABLE_1 = ("LLaVA-Video-7B", "LLaVA-Video-72B", "Qwen2.5-VL-7B", "Qwen2.5-VL-72B", "InternVL2.5-8B")
_MODELS = {name: published_models()[name] for name in _TABLE_1}


def published(run: Run, task: str) -> float | None:
    """Accuracy in percent of the row of table 1 that a run belongs to, by checkpoint and selector; None if to none."""
    name = model_of(run)
    column = _COLUMNS.get(task.removesuffix(LONG), "")
    column += "_long" if task.endswith(LONG) else ""
    rows = (row for row in _table() if (row["model"], row["selector"]) == (name, run.selector))
    return next((float(row[column]) for row in rows if column in row), None)


def ablation(option: str, task: str) -> tuple[str, dict[float, float]] | None:
    """The paper's curve over an option: whose it is, and accuracy in percent by value; None if it has none of the task.

    ``frames``, ``token_budget``, ``share`` (percent of the training data) and ``selector_size`` (billions of
    parameters); the first three are of VideoMME alone.
    """
    column = _COLUMNS.get(task)
    if option == "selector_size" and column is not None:
        return "paper, InternVL2.5-8B", {float(row["params"][:-1]): row[column] for row in _numbers()["selector_size"]}
    if option not in _ABLATIONS or column != "videomme":
        return None
    block, conditions = _ABLATIONS[option]
    return f"paper, LLaVA-Video-7B, {conditions}", _numbers()["ablations"][block]


_ABLATIONS = {
    "frames": ("input_frames_at_budget_6720", "6,720 tokens"),
    "token_budget": ("budget_at_512_frames", "512 frames"),
    "share": ("training_data_percent_at_64_frames_1680_tokens", "lite, 64 frames, 1,680 tokens"),
}


def model_of(run: Run) -> str | None:
    """The paper's name of a run's model; None if it is not the paper's."""
    name = published_model(run.checkpoint)
    return name if name in _MODELS else None


def departures(run: Run, task: str) -> list[str]:
    """What a run of one of the paper's models does otherwise than the paper's, a phrase each."""
    family, model = _MODELS[model_of(run) or ""]
    settings = {**preset(family.name, model.checkpoint, None, model.num_layers), **_OWN_OPTIONS[family.name]}
    settings |= {"max_frames_per_set": 64, "reduction": "max", "budget_remainder": "drop"}
    ignored = {"reference": set(), "lite": {"reference_layer", "reduction"}, "none": _SELECTING | FRAMES}[run.selector]
    found = {name: (run.options.get(name), value) for name, value in settings.items() if name not in ignored}
    said = [f"{name}={own}, the paper's {theirs}" for name, (own, theirs) in found.items() if own != theirs]
    if run.selector == "none":
        frames = ", ".join(f"{name}={run.options[name]}" for name in sorted(FRAMES & set(run.options)))
        said.append(f"{frames}: how many frames the paper's baseline read is not known")
    if not task.startswith("flexselect_paper_"):
        said.append("lmms-eval's prompts and parsers, not the paper's")
    elif _COLUMNS.get(task) == "longvb" and (task == _SUBTITLES) != (family.name == "internvl_hf"):
        said.append(f"{'with' if task == _SUBTITLES else 'without'} subtitles, unlike the paper's")
    return said


def _table() -> list[dict[str, Any]]:
    return _numbers()["table1"]


@cache
def _numbers() -> dict[str, Any]:
    return yaml.safe_load(files("lmms_flexselect.scores").joinpath("paper_results.yaml").read_text("utf-8"))
