"""Small pictures of a video's frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from lmms_flexselect.video.reading import VideoFile, with_video

# Widest picture by how many frames there are, so that a page stays some megabytes long.
_WIDTHS = ((64, 224), (256, 160), (10**9, 112))


def thumbnails(path: str, indices: Sequence[int]) -> list[np.ndarray]:
    """The frames at `indices` of a video, ascending: ``(height, width, 3)`` uint8 each, as wide as there is room.

    Raises
    ------
    VideoError
        If the video cannot be read; the message names it.
    """
    widest = next(width for most, width in _WIDTHS if len(indices) <= most)
    return with_video(path, lambda video: [frame for part in _small(video, indices, widest) for frame in part])


def _small(video: VideoFile, indices: Sequence[int], widest: int) -> Iterator[list[np.ndarray]]:
    for part in video.parts(indices):
        height, width = part.shape[1:3]
        size = (widest, max(1, round(height * widest / width))) if width > widest else (width, height)
        yield [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in part.numpy()]
