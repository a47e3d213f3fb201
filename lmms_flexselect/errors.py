"""Errors meant for the person at the command line: one line, what was wrong, which values are right."""

from __future__ import annotations


class FlexSelectError(ValueError):
    """Something the user can mend: an option, a checkpoint, a video."""


class OptionError(FlexSelectError):
    """A model argument that has no meaning, or no meaning together with the others."""


class VideoError(FlexSelectError):
    """A video that cannot be read as asked; the message begins with its path."""
