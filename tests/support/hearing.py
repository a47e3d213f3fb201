"""Processes that signals are sent to."""

from __future__ import annotations

import signal


def hear_ctrl_c() -> None:
    """For ``preexec_fn``: a shell has what it starts in the background ignore SIGINT, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
