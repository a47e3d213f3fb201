"""Work in threads that do not keep the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_background(
    work: Callable[..., Result], *arguments: Any, turn: threading.Semaphore | None = None, name: str = "background"
) -> Future[Result]:
    """What `work` will return or raise, begun at once, or when it is its `turn`.

    Unlike an executor's, the thread is a daemon: the interpreter does not wait for it at its end.

    Raises
    ------
    RuntimeError
        If no more threads are to be had.
    """
    future: Future[Result] = Future()

    def run() -> None:
        with turn or nullcontext():
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*arguments))
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
