"""A look at all requests before the first is answered: which videos they are about, and whether these are there.

A file missing at the end of a long run must not cost the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmms_flexselect.errors import VideoError
from lmms_flexselect.video.checking import Length, checked

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


def _video_paths(request: Any, document: Any) -> Iterator[str]:
    # A simple model's visuals, or a chat model's messages; a `loglikelihood` request may have its target before them.
    makers = [argument for argument in request.args if callable(argument)]
    for item in (makers[-1](document) or []) if makers else []:
        for media in item["content"] if isinstance(item, dict) and "content" in item else [item]:
            url = media.get("url") if isinstance(media, dict) and media.get("type") == "video" else media
            if isinstance(url, str) and "://" not in url:
                yield url
