"""Selectors by name: an open set.

``selector=NAME`` is looked up in the entry-point group ``lmms_flexselect.selectors``; ``selector=package.module:Class``
names a class that nobody registered.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from lmms_flexselect.errors import OptionError, first_line

GROUP = "lmms_flexselect.selectors"
ALIASES = {"reference": "flexselect"}
"""Earlier names, which command lines and results files still have."""


def canonical_name(name: str) -> str:
    """The name that a selector has now, of one that it has or had."""
    return ALIASES.get(name, name)


@cache
def selector_names() -> tuple[str, ...]:
    """The registered names, in alphabetical order."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@cache
def selector_class(name: str) -> Any:
    """The class behind ``selector=name``; see `lmms_flexselect.method.selectors` for what it has.

    Raises
    ------
    OptionError
        If there is none, or it cannot be imported or is no selector.
    """
    path: str | None = name
    if not re.fullmatch(r"[\w.]+:\w+", name):
        path = {point.name: point.value for point in entry_points(group=GROUP)}.get(canonical_name(name))
        if path is None:
            raise OptionError(
                f"selector={name}: must be one of {', '.join(selector_names())}, or a class as package.module:Class"
            )
    assert path is not None
    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise OptionError(f"selector={name}: {path} cannot be imported ({first_line(error)})") from None
    if not callable(getattr(found, "from_options", None)):
        raise OptionError(f"selector={name}: {path} has no from_options, so it is no selector")
    return found
