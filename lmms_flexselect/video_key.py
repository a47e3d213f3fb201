"""What tells one reading of a video from another: the file as it is now, and what is read of it."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class VideoKey:
    """Frames read under equal keys are equal.

    Attributes
    ----------
    path
        Absolute.
    size
        Of the file in bytes; of a folder of frames all its files together.
    modified_ns
        When it was last changed, in nanoseconds since 1970; of a folder the latest of itself and its files.
    reading
        What is read of it and how: a family's sampling, resolution and decoder.
    """

    path: str
    size: int
    modified_ns: int
    reading: tuple[Hashable, ...] = ()


def video_key(path: str | os.PathLike[str], *reading: Hashable) -> VideoKey | None:
    """The key of a video file or a folder of frames; None if there is none or it cannot be looked at."""
    path = os.path.abspath(str(path).removeprefix("file://"))
    try:
        stats = [os.stat(path)]
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                stats += [entry.stat() for entry in entries if entry.is_file()]
    except OSError:
        return None
    files = stats[1:] or stats
    return VideoKey(path, sum(s.st_size for s in files), max(s.st_mtime_ns for s in stats), reading)
