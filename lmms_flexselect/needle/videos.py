"""Needle videos: colour noise in which a few coloured glyphs are hidden.

Time is counted in *temporal units*, a second of video in two equal frames: what every family's needle model has as one
frame. A frame is 56x56 pixels, a 2x2 grid of quadrants of 28x28 pixels, and each quadrant becomes one visual token.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from lmms_flexselect.saving import replacing

FRAME_SIZE = 56
QUADRANT_SIZE = 28
FRAMES_PER_UNIT = 2
QUADRANTS = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 25, 25),
    "green": (25, 230, 25),
    "blue": (38, 51, 255),
    "yellow": (255, 255, 25),
    "magenta": (255, 25, 255),
    "cyan": (25, 255, 255),
    "white": (255, 255, 255),
    "orange": (255, 140, 25),
}

# Noise stays below the glyphs' brightness, as a dim scene behind a bright sign would.
_NOISE_PEAK = 153.0
_NOISE_CELLS = 7


def _glyphs() -> dict[str, npt.NDArray[np.bool_]]:
    """Returns the mask of every shape, each (28, 28)."""
    axis = np.linspace(-1, 1, QUADRANT_SIZE)
    y, x = axis[:, None], axis[None, :]
    radius = np.hypot(x, y)
    return {
        "circle": radius < 0.8,
        "square": (abs(x) < 0.7) & (abs(y) < 0.7),
        "plus": ((abs(x) < 0.25) | (abs(y) < 0.25)) & (radius < 0.95),
        "triangle": (y > 2 * abs(x) - 0.8) & (y < 0.8),
        "ring": (radius < 0.85) & (radius > 0.5),
        "cross": (abs(x - y) < 0.3) | (abs(x + y) < 0.3),
        "diamond": abs(x) + abs(y) < 0.85,
        "bar": (abs(y) < 0.3) & (abs(x) <= 1),
    }


_GLYPHS = _glyphs()
SHAPES: tuple[str, ...] = tuple(_GLYPHS)


def _bilinear() -> npt.NDArray[np.float32]:
    """Returns the matrix (56, 7) that stretches a row of noise cells over a row of pixels."""
    centres = np.clip((np.arange(FRAME_SIZE) + 0.5) * _NOISE_CELLS / FRAME_SIZE - 0.5, 0, _NOISE_CELLS - 1)
    distance = abs(centres[:, None] - np.arange(_NOISE_CELLS)[None, :])
    return np.clip(1 - distance, 0, 1).astype(np.float32)


_STRETCH = _bilinear()


@dataclass(frozen=True)
class Needle:
    """One glyph: the temporal unit and quadrant (row-major, 0..3) it is painted in, its colour and its shape."""

    unit: int
    quadrant: int
    colour: str
    shape: str


@dataclass(frozen=True)
class NeedleVideo:
    """A video that is wholly determined by its seed, its length in temporal units and its needles."""

    seed: int
    units: int
    needles: tuple[Needle, ...]

    @classmethod
    def draw(cls, seed: int, units: int, needle_count: int = 6) -> NeedleVideo:
        """Draws needles for a seed. No two share a colour, so a question has one answer, nor a unit."""
        rng = np.random.default_rng([seed, units, needle_count])
        places = rng.permutation(units)[:needle_count]
        colours = rng.permutation(len(COLOURS))[:needle_count]
        shapes = rng.integers(len(SHAPES), size=needle_count)
        quadrants = rng.integers(QUADRANTS, size=needle_count)
        names = list(COLOURS)
        needles = tuple(
            Needle(int(unit), int(quadrant), names[colour], SHAPES[shape])
            for unit, quadrant, colour, shape in zip(places, quadrants, colours, shapes, strict=True)
        )
        return cls(seed, units, needles)

    def unit_frames(self) -> npt.NDArray[np.uint8]:
        """Returns one frame per temporal unit, RGB, (units, 56, 56, 3)."""
        cells = np.random.default_rng(self.seed).random((self.units, _NOISE_CELLS, _NOISE_CELLS, 3), dtype=np.float32)
        noise = np.einsum("yi,tijc,xj->tyxc", _STRETCH, cells, _STRETCH, optimize=True) * _NOISE_PEAK
        frames = noise.round().astype(np.uint8)
        for needle in self.needles:
            top, left = (QUADRANT_SIZE * part for part in divmod(needle.quadrant, 2))
            quadrant = frames[needle.unit, top : top + QUADRANT_SIZE, left : left + QUADRANT_SIZE]
            quadrant[_GLYPHS[needle.shape]] = COLOURS[needle.colour]
        return frames

    def frames(self) -> npt.NDArray[np.uint8]:
        """Returns every frame, RGB, (2 * units, 56, 56, 3)."""
        return self.unit_frames().repeat(FRAMES_PER_UNIT, axis=0)


def write_video(path: str | os.PathLike[str], frames: npt.NDArray[np.uint8], fps: float = 2.0) -> None:
    """Encodes RGB frames (count, height, width, 3) as H.264 in an MP4 file, at `fps` frames per second.

    The file appears under its name only when it is complete, so several processes may write the same one at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        # Units have nothing in common, so each gets its own key frame and its second frame is a plain repeat.
        # Without B frames a reader sees the frames in the order they were written, and all of them.
        options = {"crf": "8", "preset": "veryfast", "g": str(FRAMES_PER_UNIT), "bf": "0", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Decodes every frame of a video file, RGB, (count, height, width, 3)."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)
