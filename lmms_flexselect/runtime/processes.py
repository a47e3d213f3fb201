"""The processes of one run: what they tell each other, and how one of them ends."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lmms_flexselect.errors import FlexSelectError


class Processes:
    """All processes of a run, for telling each other things.

    Parameters
    ----------
    timeout
        How long one of them is waited for, in hours.
    """

    _group: Any = None

    def __init__(self, timeout: float = 12.0) -> None:
        self._timeout = timeout

    def __len__(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This process's."""
        return dist.get_rank()

    def gather(self, own: Any) -> list[Any]:
        """Everybody's object, by rank; every process must call this.

        Raises
        ------
        FlexSelectError
            If a process does not within the time-out.
        """
        if len(self) == 1:
            return [own]
        start = time.monotonic()
        everyone: list[Any] = [None] * len(self)
        try:
            if self._group is None:
                # The run's own collectives give up after ten minutes on GPUs.
                self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=self._timeout))
            dist.all_gather_object(everyone, own, group=self._group)
        except RuntimeError as error:
            if time.monotonic() - start < 3600 * self._timeout:
                raise  # no time-out: the connection was lost
            raise FlexSelectError(
                f"process_timeout={self._timeout:g}: process {self.rank} waited so many hours for another one; "
                "if that one hangs, see its log; if videos take longer, give more"
            ) from error
        return everyone

    def leave_group_at_exit(self) -> None:
        """Have this process leave the others when it ends, before the interpreter goes; lmms-eval and Trainer do not.

        A thread of gloo's may let go of the last collective's tensors late, and takes the interpreter's lock for it. If
        that is being taken down by then, the process is aborted ("terminate called without an active exception"), and
        the launcher ends the others, the one that writes the results among them (pytorch/pytorch#179291, torch 2.15).
        """
        atexit.register(self._leave)

    def _leave(self) -> None:
        self._group = None  # its threads end when nobody holds it
        # Leaving NCCL's waits for the others, which a process that failed must not, and it has no such thread.
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == dist.Backend.GLOO:
            dist.destroy_process_group()


@contextmanager
def ended_by_signals(patience: float = 5.0) -> Iterator[None]:
    """Have SIGTERM leave the block by SystemExit, as SIGINT does by KeyboardInterrupt, and either end the process.

    Python tells its main thread of a signal when that comes back from native code: from a collective that waits for
    other processes, or from a decoder, perhaps never. So a thread of its own learns of it too, and ends the process if
    the block has not been left after `patience` seconds. Signals that somebody else handles are left alone, and all of
    them outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    left = threading.Event()
    here, there = socket.socketpair()
    here.setblocking(False)

    def watch() -> None:
        with there:
            while told := there.recv(1):
                if told[0] in (signal.SIGINT, signal.SIGTERM) and not left.wait(patience):
                    os._exit(128 + told[0])

    threading.Thread(target=watch, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(here.fileno(), warn_on_full_buffer=False)
    if ours := signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        left.set()
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        here.close()
