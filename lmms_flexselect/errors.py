"""Errors meant for the person at the command line: one line, what was wrong, which values are right."""

from __future__ import annotations

import re
from importlib import import_module


class FlexSelectError(ValueError):
    """Something the user can mend: an option, a checkpoint, a video."""


class OptionError(FlexSelectError):
    """A model argument that has no meaning, or no meaning together with the others."""


class VideoError(FlexSelectError):
    """A video that cannot be read as asked; the message begins with its path."""


# decord's messages begin with the time of day and a line of its source.
_DECORD_PREFIX = re.compile(r"^\[\d+:\d+:\d+\] \S+:\d+: ")


def check_matplotlib() -> None:
    """Raise `FlexSelectError` where pictures cannot be drawn; called before anything is measured for one."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise FlexSelectError(f"pictures need matplotlib: pip install 'lmms-flexselect[demo]' ({error})") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _DECORD_PREFIX.sub("", lines[0]) if lines else type(error).__name__
