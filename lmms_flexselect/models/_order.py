"""The order in which requests are answered: those about one video one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from lmms_flexselect.models._preflight import Paths


def in_video_order(requests: Sequence[Any], videos: Sequence[Paths], batch_size: int = 1) -> list[int]:
    """Numbers of the requests as they are to be answered: videos by their first question, questions as they come.

    Where several are answered at once, those that cannot be (see `_together`) are kept apart first.
    """
    kinds: list[Any] = []
    keys = []
    first: dict[Any, int] = {}
    for request, paths in zip(requests, videos, strict=True):
        kind = _together(request.args) if batch_size > 1 else None
        if kind not in kinds:
            kinds.append(kind)
        number = kinds.index(kind)
        keys.append((number, first.setdefault((number, paths), len(first))))
    return sorted(range(len(keys)), key=keys.__getitem__)


def _together(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What must agree within a batch: the generation settings; and the task, which a loop of upstream reads once."""
    return [argument for argument in arguments if isinstance(argument, dict)], *arguments[-2:]


class InOrder:
    """In place of lmms-eval's `Collator`, which sorts by the length or the words of questions: leaves them alone."""

    def __init__(self, arr: Sequence[Any], *arguments: Any, **kwargs: Any) -> None:
        self._requests = arr

    def get_batched(self, n: int = 1, batch_fn: Any = None) -> Iterator[list[Any]]:
        """Batches of at most `n`, each of requests that may be answered together."""
        for _, run in groupby(self._requests, _together):
            alike = list(run)
            for start in range(0, len(alike), n):
                yield alike[start : start + n]

    @staticmethod
    def get_original(answers: list[Any]) -> list[Any]:
        """The answers as they are."""
        return answers
