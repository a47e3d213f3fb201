"""Reading ahead: what will be asked for next is read in background threads while the model computes.

The threads are daemons, and whoever waits for a value waits on a lock, never in a decoder's native code: so Ctrl-C
reaches a run at once, and a thread that is still decoding does not hold up the end of the interpreter, as those of
`concurrent.futures` do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from itertools import groupby
from typing import Generic, TypeVar

from lmms_flexselect.runtime.background import in_background

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
        How many values are read before their turn, and how many at once; 0 reads each when it is asked for.
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
        self._turns = threading.BoundedSemaphore(max(1, ahead))

    def plan(self, keys: Iterable[Key]) -> None:
        """Begin with a new order, and with the first values of it; what was planned before is forgotten."""
        self.close()
        self._coming = deque(key for key, _ in groupby(keys))
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
            return self._read_now(key).result()
        while self._coming[0] != key:
            self._coming.popleft()
        self._begin()
        if key not in self._held:
            self._held[key] = self._read_now(key)
        return self._held[key].result()

    def close(self) -> None:
        """Let go of everything. What is being read at the moment ends by itself; nothing else is begun."""
        for future in self._held.values():
            future.cancel()
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
        for key in wanted if self._ahead else ():
            if key not in self._held and self._needed(key):
                try:
                    self._held[key] = self._read_in_thread(key, self._turns)
                except RuntimeError:  # no more threads are to be had: it is read when it is asked for
                    return

    def _read_now(self, key: Key) -> Future[Value]:
        try:
            return self._read_in_thread(key, None)
        except RuntimeError:
            future: Future[Value] = Future()
            try:
                future.set_result(self._read(key))
            except Exception as error:
                future.set_exception(_of_value(error))
            return future

    def _read_in_thread(self, key: Key, turn: threading.Semaphore | None) -> Future[Value]:
        """A value that is read in a thread of its own, once that has its turn; RuntimeError if there is no thread."""
        return in_background(self._value, key, turn=turn, name="prefetch")

    def _value(self, key: Key) -> Value:
        try:
            return self._read(key)
        except BaseException as error:
            raise _of_value(error) from None


def _of_value(error: BaseException) -> Exception:
    """An error as whoever asks for the value is to see it: what ends a thread is not to end the run."""
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return error
    died = ReaderDied(f"reading it was ended by {type(error).__name__}")
    died.__cause__ = error
    return died
