"""A look at many videos before a long run, several at once and without decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from tqdm import tqdm

from lmms_flexselect.errors import VideoError
from lmms_flexselect.runtime.background import in_background
from lmms_flexselect.video.reading import check_video

Length = tuple[int, float]  # frames, and frames a second
_AT_ONCE = 8
_FEW = 20  # so many are looked at before anyone wonders


def checked(
    paths: Sequence[str], check: Callable[[str], Length] = check_video
) -> Iterator[tuple[str, Length | VideoError]]:
    """Each path in order, with what `check` returns or raises of it; a bar shows how far it is."""
    at_once = min(_AT_ONCE, 2 * (os.cpu_count() or 1))
    running: list[Future[Length]] = [in_background(check, path) for path in paths[:at_once]]
    for number, path in enumerate(tqdm(paths, desc="Looking at videos", unit="file", disable=len(paths) < _FEW)):
        try:
            outcome: Length | VideoError = running[number].result()
        except VideoError as error:
            outcome = error
        if number + at_once < len(paths):
            running.append(in_background(check, paths[number + at_once]))
        yield path, outcome


def report_of_files(paths: Sequence[str]) -> tuple[str, int]:
    """A table of the files that are unreadable, shortened or no videos, and how many these are."""
    bad = {
        path: str(error).removeprefix(f"{path}: ") for path, error in checked(paths) if isinstance(error, VideoError)
    }
    width = max(map(len, bad), default=0)
    lines = [f"{path:<{width}}  {complaint}" for path, complaint in bad.items()]
    return "\n".join([*lines, f"{len(paths) - len(bad)} of {len(paths)} videos can be opened and are whole"]), len(bad)
