"""What a config asks for: every run with its options resolved by the very class that would run it, without weights."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.cost.memory import ITEM_BYTES, Memory, RunSettings, estimate
from lmms_flexselect.cost.shape import ModelShape
from lmms_flexselect.errors import FlexSelectError, first_line
from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.families.spec import load
from lmms_flexselect.needle import checkpoint, selector_path
from lmms_flexselect.tools.doctor.checkpoints import Checkpoint, find_checkpoint

_HOUR = 3600


@dataclass(frozen=True)
class Planned:
    """One run of a config.

    Attributes
    ----------
    model
        As on lmms-eval's command line.
    tasks
        Names of tasks.
    complaint
        Why its model would not be built; its size is not known then.
    foreign
        Whether the model is not one of this package; nothing more is known then.
    checkpoint, selector
        What it loads.
    parameters, selector_parameters
        Of these.
    memory
        What one copy needs.
    summary
        Frames, budget and the like, in words.
    kernel
        Attention implementation.
    decoder
        Video decoder.
    spread
        Whether one copy is spread over all GPUs.
    """

    model: str
    tasks: tuple[str, ...]
    complaint: str | None = None
    foreign: bool = False
    checkpoint: Checkpoint | None = None
    selector: Checkpoint | None = None
    parameters: int = 0
    selector_parameters: int = 0
    memory: Memory | None = None
    summary: str = ""
    kernel: str = "sdpa"
    decoder: str = "pyav"
    spread: bool = False


def read_config(path: Path) -> list[dict[str, Any]]:
    """The runs of a file as ``lmms-eval --config`` reads it.

    Raises
    ------
    FlexSelectError
        If there is no such file, or it is none that lmms-eval would take.
    """
    try:
        contents = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise FlexSelectError(f"{path}: cannot be read ({reason})") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise FlexSelectError(f"{path}: not YAML ({getattr(error, 'problem', None) or error}{line})") from None
    runs = contents if isinstance(contents, list) else [contents]
    if not runs or not all(isinstance(run, dict) for run in runs):
        raise FlexSelectError(f"{path}: a config is one mapping of lmms-eval's options, or a list of them")
    known = _options_of_lmms_eval()
    for run in runs:
        if unknown := sorted(set(map(str, run)) - known - {"env"}):
            raise FlexSelectError(f"{path}: lmms-eval has no option {unknown[0]}")
        for name in ("model", "tasks"):
            if not isinstance(run.get(name), str):
                raise FlexSelectError(f"{path}: says no {name}")
    return runs


def plan(runs: list[dict[str, Any]]) -> list[Planned]:
    """Resolve every run."""
    with tempfile.TemporaryDirectory() as stand_ins:
        return [_planned(run, Path(stand_ins)) for run in runs]


def resolved(model: str, arguments: Mapping[str, Any], force_simple: bool = False) -> tuple[Any, dict[str, Any]]:
    """A model object as its constructor has it before weights are loaded, and the arguments that upstream gets.

    Raises
    ------
    FlexSelectError
        If an argument is wrong, as in a run.
    """
    from lmms_eval.models import get_model

    made = get_model(model, force_simple)
    instance = made.__new__(made)
    return instance, instance._resolve(dict(arguments))


def _upstream_defaults(instance: Any) -> dict[str, Any]:
    """What upstream's class does where nothing is said."""
    from lmms_flexselect.models.plugin import FlexSelectPlugin

    parameters = inspect.signature(super(FlexSelectPlugin, instance).__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _planned(run: Mapping[str, Any], stand_ins: Path) -> Planned:
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model
    from lmms_eval.utils import simple_parse_args_string

    from lmms_flexselect.models.plugin import FlexSelectPlugin

    name, tasks = run["model"], tuple(task.strip() for task in run["tasks"].split(","))
    basis: dict[str, Any] = {"model": name, "tasks": tasks}
    if name not in MODEL_REGISTRY_V2.list_model_names():
        return Planned(**basis, complaint=f"model={name}: lmms-eval knows no such model")
    if not name.endswith("_flexselect"):
        return Planned(**basis, foreign=True)
    simple = bool(run.get("force_simple"))
    found: dict[str, Any] = {}
    try:
        made = get_model(name, simple)
        assert issubclass(made, FlexSelectPlugin)
        given = simple_parse_args_string(str(run.get("model_args") or ""))
        given |= {"batch_size": run.get("batch_size", 1)} | ({"device": run["device"]} if run.get("device") else {})
        given.pop("dump_selection", None)  # or its folder would be made
        found = _loads(given, made._family_name, stand_ins)
        for argument, checkpoint in found.items():
            if checkpoint.place is None:  # the class would ask the hub, and wait for it
                raise FlexSelectError(f"{argument}={checkpoint.name}: neither a folder nor in the hub's cache")
        places = {argument: checkpoint.place for argument, checkpoint in found.items()}
        instance, upstream = resolved(name, {**given, **places}, simple)
        upstream = _upstream_defaults(instance) | upstream
        return Planned(
            **basis,
            checkpoint=found.get("pretrained"),
            selector=found.get("selector_path"),
            spread=given.get("device_map", family_named(instance._family_name).upstream_device_map) == "auto",
            **_needs(instance, upstream, found.get("selector_path")),
        )
    except Exception as error:
        text = first_line(error)
        for checkpoint in found.values():  # the class was given the folder that it was found in
            text = text.replace(checkpoint.place, checkpoint.name) if checkpoint.place else text
        return Planned(**basis, complaint=text, checkpoint=found.get("pretrained"), selector=found.get("selector_path"))


def _loads(given: Mapping[str, Any], family: str, stand_ins: Path) -> dict[str, Checkpoint]:
    """The checkpoints that the model arguments name."""
    found = {}
    for argument, name in (("pretrained", given.get("pretrained")), ("selector_path", selector_path(given))):
        if name is not None:
            folder = checkpoint(str(name), family, selector=argument == "selector_path")
            found[argument] = find_checkpoint(folder, stand_ins)
    return found


def _needs(instance: Any, upstream: Mapping[str, Any], selector: Checkpoint | None) -> dict[str, Any]:
    """What building and running the model takes."""
    from lmms_flexselect.lite.checkpoint import read_selector_config

    options, spec = instance.options, family_named(instance._family_name)
    config = instance._checkpoint_config(str(upstream["pretrained"]))
    of_selector = None if selector is None else read_selector_config(str(selector.place)).raw
    model = load(spec.shape)(config, upstream, of_selector)
    kernel = upstream.get("attn_implementation") or "sdpa"
    frames = upstream.get(spec.frames_option) or int(_HOUR * float(upstream["fps"]))
    units = -(-int(frames) // spec.frames_per_unit)
    run = RunSettings(
        units,
        options.selector,
        options.token_budget,
        options.max_frames_per_set,
        ITEM_BYTES[options.dtype],
        kernel == "eager",
    )
    return {
        "parameters": model.parameters,
        "selector_parameters": model.selector.parameters if model.selector else 0,
        "memory": estimate(model, run),
        "summary": _summary(options, model, int(frames), run),
        "kernel": kernel,
        "decoder": options.video_decode_backend,
    }


def _summary(options: Any, model: ModelShape, frames: int, run: RunSettings) -> str:
    visual = run.units * model.tokens
    read = f"{frames} frames = {visual:,} visual tokens at most"
    if options.selector == "none":
        return f"selector=none, {read}, all kept"
    layer = f" at layer {options.reference_layer}" if options.selector == "flexselect" else ""
    return f"selector={options.selector}{layer}, {read}, {options.token_budget:,} kept, {options.dtype}"


def _options_of_lmms_eval() -> set[str]:
    from lmms_eval.__main__ import parse_eval_args

    from lmms_flexselect.models.upstream import replaced

    with replaced(sys, argv=["lmms-eval"]):
        parser, _ = parse_eval_args()
    return {action.dest for action in parser._actions}
