"""Upstream's own model arguments: values of the type that upstream's signature has for them, or a refusal.

``--model_args`` carries text, of which lmms-eval makes numbers, True and False and leaves the rest: upstream takes
``force_sample=no`` for true, since that is a text that is not empty.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, get_args

import torch

from lmms_flexselect.errors import OptionError
from lmms_flexselect.options import check_choice, truth, whole_number

KERNELS = ("sdpa", "eager", "flash_attention_2")
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def typed(given: Mapping[str, Any], signature: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments, those in a signature as the types that it has for them.

    Raises
    ------
    OptionError
        If one cannot be made that.
    """
    return {n: _typed(n, value, signature[n]) if n in signature else value for n, value in given.items()}


def check_common(arguments: Mapping[str, Any]) -> None:
    """Raise `OptionError` for a value that no class of upstream's could work with."""
    if (kernel := arguments["attn_implementation"]) is not None:
        check_choice("attn_implementation", kernel, KERNELS)
    if arguments["device"] is not None:
        _check_device("device", arguments["device"])
    place = arguments["device_map"]
    if isinstance(place, str) and place and place not in _DEVICE_MAPS:
        _check_device("device_map", place, f"{', '.join(_DEVICE_MAPS)}, or ")


def check_machine(arguments: Mapping[str, Any]) -> None:
    """Raise `OptionError` for a GPU that this machine does not have."""
    for name in ("device", "device_map"):
        place = arguments.get(name)
        if not isinstance(place, str) or not place.startswith("cuda"):
            continue
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(place).index or 0) >= count:
            raise OptionError(f"{name}={place}: torch sees {count} GPUs here")


def check_defaults(
    arguments: Mapping[str, Any], signature: Mapping[str, inspect.Parameter], names: Iterable[str]
) -> None:
    """Raise `OptionError` for an argument that changes nothing here, and has another value than upstream's own."""
    for name in names:
        default = signature[name].default
        if arguments[name] != default:
            raise OptionError(f"{name}={arguments[name]}: only {default} is supported")


def check_fps(fps: Any, otherwise: str) -> None:
    """Raise `OptionError` unless it is a rate, or None; `otherwise` says what ``none`` means."""
    if fps is not None and not 0 < fps < math.inf:
        raise OptionError(f"fps={fps:g}: must be greater than 0{otherwise}")


def _typed(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    kinds = _kinds(parameter)
    if value is None or (NoneType in kinds and isinstance(value, str) and value.lower() == "none"):
        return None
    if name == "batch_size":  # annotated as text too, for a size that upstream's loops do not know how to find
        kinds = {int}
        value = int(value) if isinstance(value, str) and value.isdecimal() else value
    if bool in kinds:
        return truth(name, value)
    if str in kinds:
        return value if isinstance(value, Mapping) else str(value)  # a device map from Python
    if int in kinds and float not in kinds:
        return whole_number(name, value, at_least=1)
    if float in kinds and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise OptionError(f"{name}={value}: must be a number{' or none' if NoneType in kinds else ''}")
    return value


def _kinds(parameter: inspect.Parameter) -> set[Any]:
    """Types of an argument: those of its annotation, or its default's."""
    if parameter.annotation is inspect.Parameter.empty:
        return {type(parameter.default)}
    return set(get_args(parameter.annotation)) or {parameter.annotation}


def _check_device(name: str, value: str, others: str = "") -> None:
    try:
        torch.device(value)
    except (RuntimeError, ValueError):
        raise OptionError(f"{name}={value}: must be {others}a device such as cuda, cuda:0 or cpu") from None
