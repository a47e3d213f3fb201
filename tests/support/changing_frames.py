"""Frames for test videos."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def changing_frames(count: int, height: int = 36, width: int = 52) -> npt.NDArray[np.uint8]:
    """Frames that differ from one another everywhere: a gradient that moves, over a brightness that rises."""
    rows, columns = np.mgrid[:height, :width]
    shades = [(rows * 3 + columns * 2 + 11 * t, rows + 7 * t, columns * 2 + 5 * t) for t in range(count)]
    return np.stack([np.stack(shade, -1) % 256 for shade in shades]).astype(np.uint8)
