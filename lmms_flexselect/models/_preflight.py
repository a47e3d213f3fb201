"""A look at all requests before the first is answered: which videos they are about, and whether these are there.

A file missing at the end of a long run must not cost the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmms_flexselect.errors import VideoError
from lmms_flexselect.video_file import file_complaint

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


def check_videos(videos: Iterable[Paths], complaint_of: Callable[[str], str | None] = file_complaint) -> None:
    """Raise unless every video that requests will ask for is there and not empty.

    Files are not opened: whether they decode shows when it is their turn.

    Parameters
    ----------
    videos
        See `request_videos`.
    complaint_of
        What is wrong with a path, or None.

    Raises
    ------
    VideoError
        Naming the first file, and saying how many there are.
    """
    seen = {path: complaint_of(path) for path in dict.fromkeys(path for paths in videos for path in paths)}
    bad = {path: complaint for path, complaint in seen.items() if complaint}
    if bad:
        first, complaint = next(iter(bad.items()))
        others = f" ({len(bad)} of {len(seen)} videos are missing or empty)" if len(bad) > 1 else ""
        raise VideoError(f"{first}: {complaint}{others}")


def _paths(shown: Iterable[Any]) -> Iterator[str]:
    for item in shown:
        for media in item["content"] if isinstance(item, dict) and "content" in item else [item]:
            url = media.get("url") if isinstance(media, dict) and media.get("type") == "video" else media
            if isinstance(url, str) and "://" not in url:
                yield url
