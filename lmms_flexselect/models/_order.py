"""The order in which requests are answered, and which of them together: those about one video one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from lmms_flexselect.models._preflight import Paths


def in_batches(requests: Sequence[Any], videos: Sequence[Paths], batch_size: int = 1) -> list[list[int]]:
    """Numbers of the requests, batch by batch: videos by their first question, questions as they come.

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
    batches = []
    for _, run in groupby(sorted(range(len(keys)), key=keys.__getitem__), lambda i: keys[i][0]):
        alike = list(run)
        batches += [alike[start : start + batch_size] for start in range(0, len(alike), batch_size)]
    return batches


def _together(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What must agree within a batch: the generation settings; and the task, which a loop of upstream reads once."""
    return [argument for argument in arguments if isinstance(argument, dict)], *arguments[-2:]


class OneBatch:
    """In place of lmms-eval's `Collator`, which sorts requests and divides them: leaves those of a batch alone."""

    def __init__(self, arr: Sequence[Any], *arguments: Any, **kwargs: Any) -> None:
        self._requests = arr

    def get_batched(self, *arguments: Any, **kwargs: Any) -> Iterator[Sequence[Any]]:
        """All requests at once."""
        yield self._requests

    @staticmethod
    def get_original(answers: list[Any]) -> list[Any]:
        """The answers as they are."""
        return answers


class NoProgress:
    """In place of `tqdm` in an upstream loop, which is called once a batch; the run has one bar of its own."""

    def __init__(self, *arguments: Any, **kwargs: Any) -> None:
        """Takes what `tqdm` takes."""

    def update(self, number: int = 1) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""
