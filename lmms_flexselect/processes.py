"""The processes of one run: what they tell each other, and how one of them leaves."""

from __future__ import annotations

import atexit
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_AS_LONG_AS_IT_TAKES = timedelta(weeks=52)


class Processes:
    """All processes of a run, for telling each other things however long one of them takes."""

    _group: Any = None

    def __len__(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This process's."""
        return dist.get_rank()

    def gather(self, said: Any) -> list[Any]:
        """What all say, by rank; every process must be here."""
        if self._group is None:
            # The run's own collectives give up after ten minutes on GPUs.
            self._group = dist.new_group(backend="gloo", timeout=_AS_LONG_AS_IT_TAKES)
        everyone: list[Any] = [None] * len(self)
        dist.all_gather_object(everyone, said, group=self._group)
        return everyone

    def leave_at_exit(self) -> None:
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
