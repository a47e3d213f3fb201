"""A look at all requests before the first is answered: which videos they are about, and whether these are there.

A file missing at the end of a long run must not cost the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmms_flexselect.errors import VideoError
from lmms_flexselect.video_file import file_complaint

Paths = tuple[str, ...]


def request_videos(requests: list[Any], task_dict: dict[str, Any]) -> list[Paths]:
    """The paths of what each request looks at, in order.

    A task whose first document has no video is left alone, since its documents may hold images, which are costly to
    load.

    Parameters
    ----------
    requests
        As `generate_until` gets them, of simple or of chat models.
    task_dict
        Data sets by task and split.
    """
    videos: list[Paths] = []
    without_video: set[str] = set()
    for request in requests:
        *_, doc_id, task, split = request.args
        paths = () if task in without_video else tuple(_video_paths(request, task_dict[task][split][doc_id]))
        if not paths:
            without_video.add(task)
        videos.append(paths)
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


def _video_paths(request: Any, document: Any) -> Iterator[str]:
    # A simple model's visuals, or a chat model's messages; a `loglikelihood` request may have its target before them.
    makers = [argument for argument in request.args if callable(argument)]
    for item in (makers[-1](document) or []) if makers else []:
        for media in item["content"] if isinstance(item, dict) and "content" in item else [item]:
            url = media.get("url") if isinstance(media, dict) and media.get("type") == "video" else media
            if isinstance(url, str) and "://" not in url:
                yield url
