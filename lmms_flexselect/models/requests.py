"""lmms-eval's requests: taken apart, looked at before the first is answered, and put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.video.checking import Length, checked

Paths = tuple[str, ...]


def request_videos(kind: str, requests: list[Any], task_dict: dict[str, Any]) -> list[Paths]:
    """The paths of what each request looks at first, in order; none for one that looks at no video.

    Every document is looked at, since a task may have videos in some of them only. Those that hold images are decoded
    for that, and let go of.

    Parameters
    ----------
    kind
        Which of a model's methods answers them: ``"generate_until"``, ``"generate_until_multi_round"``,
        ``"loglikelihood"``.
    requests
        As that method gets them, of simple or of chat models.
    task_dict
        Data sets by task and split.
    """
    videos: list[Paths] = []
    for request in requests:
        *_, doc_id, task, split = request.args
        # A simple model's visuals or a chat model's messages. In front of them a likelihood's target may be a function
        # too, and behind them what is asked in later rounds.
        makers = [argument for argument in request.args if callable(argument)]
        shown = makers[-1 if kind == "loglikelihood" else 0](task_dict[task][split][doc_id]) if makers else None
        videos.append(tuple(_paths(shown or [])))
    return videos


def check_videos(videos: Iterable[Paths], check: Callable[[str], Length], strict: bool) -> dict[str, Length | None]:
    """Look at every video that requests will ask for, several at once; nothing is decoded.

    Parameters
    ----------
    videos
        See `request_videos`.
    check
        Frames and rate of a video; raises `VideoError`.
    strict
        Whether one that cannot be read ends the run.

    Returns
    -------
    dict
        Frames and rate by path, None for a video that cannot be read.

    Raises
    ------
    VideoError
        For the first of them with `strict`, saying how many there are.
    """
    paths = list(dict.fromkeys(path for paths in videos for path in paths))
    lengths: dict[str, Length | None] = {}
    bad: list[VideoError] = []
    for path, outcome in checked(paths, check):
        if isinstance(outcome, VideoError):
            bad.append(outcome)
        lengths[path] = None if isinstance(outcome, VideoError) else outcome
    if bad and strict:
        others = f" ({len(bad)} of {len(paths)} videos cannot be read)" if len(bad) > 1 else ""
        raise VideoError(f"{bad[0]}{others}")
    return lengths


def _paths(shown: Iterable[Any]) -> Iterator[str]:
    for item in shown:
        for media in item["content"] if isinstance(item, dict) and "content" in item else [item]:
            url = media.get("url") if isinstance(media, dict) and media.get("type") == "video" else media
            if isinstance(url, str) and "://" not in url:
                yield url


def check_text(text: str, placeholders: Sequence[str], where: str) -> None:
    """Raise `FlexSelectError` if a text has one of a model's placeholders in it; `where` says what text it is."""
    for placeholder in placeholders:
        if placeholder in text:
            raise FlexSelectError(
                f"{where} has {placeholder} in it, which this model reads as the place of an image or a video: "
                "write it otherwise, or leave the question out"
            )


def check_requests(requests: Sequence[Any], placeholders: Sequence[str]) -> None:
    """`check_text` for what requests ask, before the first is answered."""
    for request in requests:
        *_, doc_id, task, _ = request.args
        for text in request.args:
            if isinstance(text, str) and text != task:
                check_text(text, placeholders, f"{task}, document {doc_id}: the question")


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
