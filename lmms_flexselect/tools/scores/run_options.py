"""Which options a run was made with: all that may change an answer, by name."""

from __future__ import annotations

from typing import Any

import yaml

from lmms_flexselect.checkpoints import checkpoint_name
from lmms_flexselect.presets import OPERATIONAL, PLACEMENT

# Where and how it ran, or what stands elsewhere: answers are the same with others.
_NOT_OPTIONS = {"pretrained", "selector", "upstream", "checkpoint", "torch_dtype", *PLACEMENT, *OPERATIONAL}
# Of lmms-eval's own command line: what changes questions or answers. Named in an expectation only where it is set.
_EVALUATION_ARGUMENTS = ("gen_kwargs", "num_fewshot", "system_instruction", "apply_chat_template", "offset", "repeats")


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: a foreign file may hold anything anywhere."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def model_args(given: Any) -> dict[str, Any]:
    """``--model_args`` by name, from the line or from a config file's mapping."""
    if isinstance(given, dict):
        return given
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def run_options(resolved: dict[str, Any], config: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """All that may change an answer, flat, numbers as numbers and paths as names."""
    merged = {**mapping(resolved.get("upstream")), **resolved}
    options = {name: _plain(value) for name, value in merged.items() if name not in _NOT_OPTIONS}
    if isinstance(options.get("selector_path"), str):
        options["selector_path"] = checkpoint_name(options["selector_path"])
    for name in _EVALUATION_ARGUMENTS:
        value = line.get(name, config.get(name))
        if value and (name, value) != ("repeats", 1):
            options[name] = _plain(value)
    if str(config.get("model_backend")).endswith("(simple)") and line.get("force_simple"):
        options["force_simple"] = True
    return dict(sorted(options.items()))


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    if value in ("None", "null"):
        return None
    return parsed if isinstance(parsed, (bool, int, float)) else value


def option_differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options with different values, both; ``any`` in `expected` is any value, an absent option is None."""
    names = sorted({*expected, *found})
    pairs = {name: (expected.get(name), found.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] not in ("any", pair[1])}
