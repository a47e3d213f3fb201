"""lmms-eval's requests: taken apart, looked at before the first is answered, and put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.models.records import DocumentKey
from lmms_flexselect.video.checking import Length, checked

Paths = tuple[str, ...]


@dataclass(frozen=True)
class RequestParts:
    """What lmms-eval hands to a model in one request.

    Attributes
    ----------
    text
        The question.
    document
        Task, split and document number.
    settings
        Generation settings; None of a likelihood.
    target
        The text whose likelihood is wanted, or what makes it of the document; None of other requests.
    visuals
        Makes what a simple model is shown of the document; None for a chat model.
    messages
        Makes a chat model's messages of the document; None for a simple model.
    next_round
        Makes what a simple model is asked in later rounds; None without any.
    """

    text: str
    document: DocumentKey
    settings: dict[str, Any] | None = None
    target: Any = None
    visuals: Callable[[Any], Any] | None = None
    messages: Callable[[Any], Any] | None = None
    next_round: Callable[..., Any] | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As lmms-eval has them."""
        if self.messages is not None:
            between: tuple[Any, ...] = (self.messages, self.settings)
        elif self.settings is None:
            between = (self.target, self.visuals)
        else:
            between = (self.settings, self.visuals, *([self.next_round] if self.next_round else []))
        task, split, doc_id = self.document
        return (self.text, *between, doc_id, task, split)


def take_apart(request: Any) -> RequestParts:
    """The parts of a request of lmms-eval's, by the types of its arguments.

    Raises
    ------
    FlexSelectError
        If the arguments are none that lmms-eval gives, or name another document than the request itself.
    """
    match request.args:
        case (str(text), dict(settings), visuals, doc_id, str(task), str(split)) if callable(visuals):
            parts = RequestParts(text, (task, split, doc_id), settings, visuals=visuals)
        case (str(text), dict(settings), visuals, next_round, doc_id, str(task), str(split)) if callable(
            visuals
        ) and callable(next_round):
            parts = RequestParts(text, (task, split, doc_id), settings, visuals=visuals, next_round=next_round)
        case (str(text), messages, dict(settings), doc_id, str(task), str(split)) if callable(messages):
            parts = RequestParts(text, (task, split, doc_id), settings, messages=messages)
        case (str(text), target, visuals, doc_id, str(task), str(split)) if callable(visuals) and (
            isinstance(target, str) or callable(target)
        ):
            parts = RequestParts(text, (task, split, doc_id), target=target, visuals=visuals)
        case arguments:
            kinds = ", ".join(type(argument).__name__ for argument in arguments)
            raise FlexSelectError(f"a request of lmms-eval's has arguments ({kinds}), which this package cannot read")
    task, _, doc_id = parts.document
    own = getattr(request, "task_name", task), getattr(request, "doc_id", doc_id)  # lmms-eval's `Instance` says both
    if own != (task, doc_id):
        raise FlexSelectError(f"a request of task {own[0]}, document {own[1]}, asks about {task}, document {doc_id}")
    return parts


def request_videos(requests: list[Any], task_dict: dict[str, Any]) -> list[Paths]:
    """The paths of what each request looks at first, in order; none for one that looks at no video.

    Every document is looked at, since a task may have videos in some of them only. Those that hold images are decoded
    for that, and let go of.

    Parameters
    ----------
    requests
        Of simple or of chat models.
    task_dict
        Data sets by task and split.
    """
    videos: list[Paths] = []
    for request in requests:
        parts = take_apart(request)
        task, split, doc_id = parts.document
        shown = (parts.messages or parts.visuals)(task_dict[task][split][doc_id])  # type: ignore[misc]
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
        parts = take_apart(request)
        task, _, doc_id = parts.document
        for text in (parts.text, parts.target):
            if isinstance(text, str):
                check_text(text, placeholders, f"{task}, document {doc_id}: the question")


def in_batches(requests: Sequence[Any], videos: Sequence[Paths], batch_size: int = 1) -> list[list[int]]:
    """Numbers of the requests, batch by batch: videos by their first question, questions as they come.

    Where several are answered at once, those that cannot be (see `_together`) are kept apart first.
    """
    kinds: list[Any] = []
    keys = []
    first: dict[Any, int] = {}
    for request, paths in zip(requests, videos, strict=True):
        kind = _together(take_apart(request)) if batch_size > 1 else None
        if kind not in kinds:
            kinds.append(kind)
        number = kinds.index(kind)
        keys.append((number, first.setdefault((number, paths), len(first))))
    batches = []
    for _, run in groupby(sorted(range(len(keys)), key=keys.__getitem__), lambda i: keys[i][0]):
        numbers = list(run)
        batches += [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return batches


def _together(parts: RequestParts) -> tuple[Any, ...]:
    """What must agree within a batch: the generation settings; and the task, which a loop of upstream reads once."""
    return parts.settings, *parts.document[:2]


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
