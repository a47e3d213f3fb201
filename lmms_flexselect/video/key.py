"""What tells one reading of a video from another: the file as it is now, and what is read of it."""

from __future__ import annotations

import hashlib
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
    files
        Which file that is, and its state: device, inode, size, and when content and inode last changed, in nanoseconds.
        Not what a copy preserves alone, since another file may have come in its place. Of a folder of frames a digest
        of its own and its files'.
    reading
        What is read of it and how: a family's sampling, resolution and decoder.
    """

    path: str
    files: Hashable
    reading: tuple[Hashable, ...] = ()


def video_key(path: str | os.PathLike[str], *reading: Hashable) -> VideoKey | None:
    """The key of a video file or a folder of frames; None if there is none or it cannot be looked at.

    Links are followed, so that the key is of what they lead to now.
    """
    path = os.path.abspath(str(path).removeprefix("file://"))
    try:
        files: Hashable = _state(os.stat(path))
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                inside = sorted((entry.name, _state(entry.stat())) for entry in entries if entry.is_file())
            files = hashlib.blake2b(repr((files, inside)).encode(), digest_size=16).digest()
    except OSError:
        return None
    return VideoKey(path, files, reading)


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
