"""An end to what does not end by itself: work in a thread of its own that must report progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lmms_flexselect.errors import VideoError

Result = TypeVar("Result")
DEFAULT_TIMEOUT = 60.0


class Progress:
    """Called for each packet and frame by what reads a video."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.given_up = False
        self.at_end: Callable[[], object] = lambda: None  # ends another process that works for this

    def __call__(self) -> None:
        """Report one step; ends the thread if nobody waits for it any more."""
        if self.given_up:
            raise SystemExit
        self.last = time.monotonic()


def watched(path: str, timeout: float, work: Callable[[Progress], Result]) -> Result:
    """What `work` returns or raises, unless it reports no progress for `timeout` seconds.

    Native code that does not return cannot be stopped from outside; its thread is left behind. It holds no lock of the
    interpreter and, being a daemon, does not keep the process from ending.

    Raises
    ------
    VideoError
        If it comes to a halt.
    """
    progress, done = Progress(), threading.Event()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work(progress)
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    threading.Thread(target=run, name="read video", daemon=True).start()
    try:
        while not done.wait(min(1.0, max(0.01, progress.last + timeout - time.monotonic()))):
            if time.monotonic() - progress.last >= timeout:
                raise VideoError(
                    f"{path}: reading it came to a halt, no frame or packet for {timeout:g} s; encode it anew, "
                    "or give a longer video_timeout if its disk is slow"
                )
    finally:
        if not done.is_set():
            progress.given_up = True
            progress.at_end()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
