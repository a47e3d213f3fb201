"""Small pictures of a video's frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lmms_flexselect.video_file import open_video

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
    made: list[np.ndarray] = []
    for part in open_video(path).parts(indices):
        for frame in part.numpy():
            height, width = frame.shape[:2]
            if width > widest:
                size = (widest, max(1, round(height * widest / width)))
                frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
            made.append(frame)
    return made
