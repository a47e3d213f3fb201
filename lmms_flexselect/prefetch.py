"""Reading ahead: what will be asked for next is read in background threads while the model computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from itertools import groupby
from typing import Generic, TypeVar

from lmms_flexselect.background import in_background

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ReaderDied(RuntimeError):
    """What read a value was ended from outside or ran out of memory; names the reason."""


class Prefetcher(Generic[Key, Value]):
    """Values in an order known beforehand; at most `ahead` + 1 of them are held or being read.

    These are always the next different keys that will be asked for, the one in use first. So a value asked for
    several times in a row is read once, and every other one is let go before the next is begun.

    Parameters
    ----------
    read
        Makes a value of its key, in any thread.
    ahead
        How many values are read before their turn, and in how many threads; 0 reads each when it is asked for.
    needed
        Whether a value will be asked for, as it looks at the time; others are not read ahead.
    """

    def __init__(
        self, read: Callable[[Key], Value], ahead: int = 2, needed: Callable[[Key], bool] = lambda key: True
    ) -> None:
        self._read = read
        self._ahead = ahead
        self._needed = needed
        self._coming: deque[Key] = deque()
        self._held: dict[Key, Future[Value]] = {}
        self._turn: threading.Semaphore | None = None

    def plan(self, keys: Iterable[Key]) -> None:
        """Begin with a new order, and with the first values of it; what was planned before is forgotten."""
        self.close()
        self._coming = deque(key for key, _ in groupby(keys))
        if self._ahead and self._coming:
            self._turn = threading.Semaphore(self._ahead)
        self._begin()

    def get(self, key: Key) -> Value:
        """The value of `key`, waited for if it is not there yet; keys may be left out, and their values are let go.

        One that is not to come is read at once, and not held.

        Raises
        ------
        Exception
            Whatever reading it raised, each time it is asked for.
        ReaderDied
            If its thread was ended or ran out of memory. Only this value is lost.
        """
        if key not in self._coming:
            return self._value(key)
        while self._coming[0] != key:
            self._coming.popleft()
        self._begin()
        if key not in self._held:
            value = self._value(key)
            self._held[key] = Future()
            self._held[key].set_result(value)
        return self._held[key].result()

    def close(self) -> None:
        """Let go of everything. What is being read at the moment ends by itself; nothing else is begun."""
        for future in self._held.values():
            future.cancel()
        self._turn = None
        self._coming.clear()
        self._held.clear()

    def _begin(self) -> None:
        """Let go of what is not among the next values, and begin to read what is."""
        wanted: list[Key] = []
        for key in self._coming:
            if key not in wanted:
                wanted.append(key)
            if len(wanted) > self._ahead:
                break
        for key in [key for key in self._held if key not in wanted]:
            self._held.pop(key).cancel()
        if self._turn is None:
            return
        for key in wanted:
            if key not in self._held and self._needed(key):
                try:
                    self._held[key] = in_background(self._value, key, turn=self._turn)
                except RuntimeError:  # no more threads are to be had: it is read when it is asked for
                    return

    def _value(self, key: Key) -> Value:
        try:
            return self._read(key)
        except BaseException as error:
            own = threading.current_thread() is not threading.main_thread()
            if isinstance(error, MemoryError) or (own and not isinstance(error, Exception)):
                raise ReaderDied(f"reading it was ended by {type(error).__name__}") from error
            raise
