"""The paper's facts, `table.yaml`, and the runs that reproduce its tables: model class, arguments, tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

METRICS = {
    "videomme": "VideoMME",
    "videomme_long": "VideoMME long",
    "mlvu": "MLVU",
    "longvb": "LongVideoBench",
    "lvbench": "LVBench",
}


@cache
def facts() -> dict[str, Any]:
    """What `table.yaml` holds: the paper's numbers, protocols, families, models and ablations; not to be changed."""
    return yaml.safe_load(files("lmms_flexselect.tools.reproduction").joinpath("table.yaml").read_text("utf-8"))


# Files keep the names that command lines have.
_IN_FILE_NAMES = {"flexselect": "reference"}


@dataclass(frozen=True)
class RunConfig:
    """One ``lmms-eval --config`` file.

    Attributes
    ----------
    path
        Below ``run_configs``, ``paper/MODEL_SELECTOR.yaml`` and the like.
    row
        The model as the paper's tables name it.
    protocol
        ``paper`` or ``stock``.
    about
        What varies, of an ablation; None of a row of table 1.
    model
        As on lmms-eval's command line.
    arguments
        All of ``--model_args``, in their order.
    tasks
        Names of lmms-eval tasks.
    published
        Accuracy in percent by names of `METRICS`; empty where the paper has none.
    train
        Files of ``run_configs/train`` that make the run's selector; empty if it needs none, or a published one.
    """

    path: str
    row: str
    protocol: str
    about: str | None
    model: str
    arguments: Mapping[str, Any]
    tasks: tuple[str, ...]
    published: Mapping[str, float]
    train: tuple[str, ...] = ()

    @property
    def selector(self) -> str:
        """As the paper's results name it: ``none``, ``flexselect`` or ``lite``."""
        return str(self.arguments["selector"])

    @property
    def fills_a_node(self) -> bool:
        """Whether one copy of the model is spread over all GPUs."""
        return self.arguments["device_map"] == "auto"


def runs() -> list[RunConfig]:
    """All of them: table 1 by the paper's protocol and by the stock one, then the ablations."""
    return [*table_1(), *ablations()]


def table_1() -> list[RunConfig]:
    """Of each protocol and model: nothing selected, FlexSelect, and FlexSelect-Lite where a selector is published."""
    table, made = facts(), []
    for protocol in table["protocols"]:
        for row, model in table["models"].items():
            for selector in ("none", "flexselect", *(("lite",) if "lite" in model else ())):
                numbers = next(
                    n for n in table["published"]["table1"] if (n["model"], n["selector"]) == (row, selector)
                )
                path = f"{protocol}/{_name(row)}_{_IN_FILE_NAMES.get(selector, selector)}.yaml"
                made.append(_run(path, row, protocol, {"selector": selector}, published=_metrics(numbers)))
    return made


def ablations() -> list[RunConfig]:
    """All by the paper's protocol, a file a point."""
    made = []
    for name, ablation in facts()["ablations"].items():
        for point, changed in ablation["points"].items():
            own = {**ablation.get("with", {}), **changed}
            train, label = own.pop("train", ()), own.pop("published", None)
            own["selector"] = "lite" if "selector_path" in own else "flexselect"
            made.append(
                _run(
                    f"ablations/{name}/{point}.yaml",
                    ablation["model"],
                    "paper",
                    own,
                    about=ablation["about"],
                    tasks=tuple(ablation.get("tasks", ())),
                    published=_of_ablation(ablation.get("published"), label),
                    train=tuple(train),
                )
            )
    return made


def _run(
    path: str, row: str, protocol: str, own: Mapping[str, Any], tasks: tuple[str, ...] = (), **rest: Any
) -> RunConfig:
    """With the arguments of the model, its family and the protocol; those of `own` win."""
    table = facts()
    model = table["models"][row]
    family = table["families"][model["family"]]
    by_protocol = family.get(protocol, {})
    tasks = tasks or tuple(table["protocols"][protocol]["tasks"])
    return RunConfig(
        path,
        row,
        protocol,
        model=by_protocol.get("class", family["class"]),
        arguments=_arguments(model, family, protocol, own),
        tasks=tuple(by_protocol.get("tasks", {}).get(task, task) for task in tasks),
        **{"about": None, **rest},
    )


def _arguments(
    model: Mapping[str, Any], family: Mapping[str, Any], protocol: str, own: Mapping[str, Any]
) -> dict[str, Any]:
    selector = own["selector"]
    frames = family["reads"]["none" if selector == "none" else "selecting"]
    made: dict[str, Any] = {"pretrained": model["pretrained"], "selector": selector}
    if selector == "lite":
        made["selector_path"] = model["lite"]
    if selector == "flexselect":
        made["reference_layer"] = model["reference_layer"]
    if selector != "none":
        made |= {**family["selecting"], **facts()["protocols"][protocol]["selecting"]}
    made[family["frames"]] = frames
    made |= {**family["arguments"], **family.get(protocol, {}).get("arguments", {})}
    if selector == "lite":
        made |= family.get("lite", {})
    made |= {"dtype": "bfloat16", "device_map": model["device_map"], "strict": True}
    return made | {family["frames"] if name == "frames" else name: value for name, value in own.items()}


def _of_ablation(table: str | None, label: Any) -> dict[str, float]:
    """Published numbers of one point; most ablations have VideoMME's alone."""
    if table is None:
        return {}
    if table == "selector_size":
        return _metrics(next(each for each in facts()["published"][table] if each["params"] == label))
    return {"videomme": facts()["published"]["ablations"][table][label]}


def _metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: numbers[name] for name in METRICS if name in numbers}


def _name(row: str) -> str:
    """A model's name as files have it."""
    return row.lower().replace("-", "_").replace(".", "_")
