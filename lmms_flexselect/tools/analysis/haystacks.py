"""The samples that are measured: our own needle videos, or needle images put into a folder of videos (V-NIAH's form).

A source has ``about()``, ``samples(count)``, ``check(samples, …)`` and ``read(sample, …)``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.families.family import Family
from lmms_flexselect.families.pixels import read_picture, stretched
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.needle.benchmark import GENERATOR_VERSION, NEEDLES_PER_VIDEO, documents, video_path
from lmms_flexselect.needle.naming import NAMINGS
from lmms_flexselect.needle.videos import FRAMES_PER_UNIT
from lmms_flexselect.tools.analysis.image_needles import read_needles
from lmms_flexselect.training.data_files import digest
from lmms_flexselect.video.reading import VideoFile, check_video, with_video

PLACES = ("insert", "replace")
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True)
class Haystack:
    """A question whose answer lies in one place of a video.

    Attributes
    ----------
    id
        Of the sample, unique.
    video
        What samples about one video share.
    question
        Its text.
    unit
        Frame that holds the needle, as the family counts frames.
    quadrant
        Which quarter of the frame it is, in rows; None for all of it.
    """

    id: str
    video: str
    question: str
    unit: int
    quadrant: int | None = None

    def tokens(self, family: Family, prompt: VideoPrompt) -> Tensor:
        """The needle's tokens in a prompt of this video: ``(tokens,)`` bool on the CPU.

        A whole frame's are all that selection may drop of it, newlines and marks too, as they are ranked.
        """
        if self.quadrant is None:
            return (prompt.visual & (prompt.frame == self.unit)).cpu()
        patches = family.patches(prompt, self.unit).cpu()
        (row, column), (down, right) = (size // 2 for size in patches.shape), divmod(self.quadrant, 2)
        needle = torch.zeros(len(prompt), dtype=torch.bool)
        needle[patches[down * row : (down + 1) * row, right * column : (right + 1) * column]] = True
        return needle


class Source(Protocol):
    """See the module's docstring."""

    count: int
    """How many samples there are where no number is given."""

    def about(self) -> dict[str, Any]:
        """What its samples depend on."""
        ...

    def samples(self, count: int) -> list[Haystack]:
        """The first `count`; fewer where there are no more."""
        ...

    def check(self, samples: Sequence[Haystack], frames_per_unit: int) -> None:
        """Raise `VideoError` for the first whose video cannot be read, or is too short."""
        ...

    def read(self, sample: Haystack, frames_per_unit: int) -> Tensor:
        """Frames ``(units * frames_per_unit, height, width, 3)`` uint8.

        Raises
        ------
        VideoError
            If its video cannot be read, or is too short.
        """
        ...


class NeedleVideos:
    """Our own needle benchmark: a question for each of six glyphs a video, of which one quarter of one frame is it.

    `naming` is what questions call a colour, one of `NAMINGS`.
    """

    count = 40 * NEEDLES_PER_VIDEO

    def __init__(self, units: int, seed: int, naming: str = "colour") -> None:
        if units < NEEDLES_PER_VIDEO:
            raise OptionError(f"frames={units}: a needle video hides {NEEDLES_PER_VIDEO} needles, so give at least 6")
        self._units, self._seed, self._naming = units, seed, naming

    def about(self) -> dict[str, Any]:
        """See `Source.about`."""
        kind = "" if self._naming == "colour" else f", {self._naming}"
        return {"source": f"needle videos, {GENERATOR_VERSION}{kind}", "units": self._units, "seed": self._seed}

    def samples(self, count: int) -> list[Haystack]:
        """See `Source.samples`."""
        videos = -(-count // NEEDLES_PER_VIDEO)
        self._rows = documents(self._units, videos, self._seed, NAMINGS[self._naming])[:count]
        return [Haystack(r["id"], r["video"], r["question"], r["unit"], r["quadrant"]) for r in self._rows]

    def check(self, samples: Sequence[Haystack], frames_per_unit: int) -> None:
        """Nothing can be wrong with them."""

    def read(self, sample: Haystack, frames_per_unit: int) -> Tensor:
        """See `Source.read`."""
        row = next(row for row in self._rows if row["id"] == sample.id)
        frames = spread_frames(str(video_path(row)), self._units * FRAMES_PER_UNIT)
        return frames.unflatten(0, (self._units, FRAMES_PER_UNIT))[:, :frames_per_unit].flatten(0, 1)


class ImageNeedles:
    """Pictures put into videos, each into each, at places drawn by the seed.

    Parameters
    ----------
    videos
        Folder of video files.
    needles
        Folder of pictures with a ``needles.json`` or ``needles.jsonl`` (see `read_needles`), or that file.
    units
        Frames a sample, the needle's included, as the family counts frames.
    place
        ``"insert"``: between frames of the video, which is read one frame shorter; ``"replace"``: over one of them.
    seed
        Of the order of the videos, and of the places.
    """

    def __init__(self, videos: str, needles: str, units: int, place: str, seed: int) -> None:
        if place not in PLACES:
            raise OptionError(f"place={place}: must be one of {', '.join(PLACES)}")
        if units < 2:
            raise OptionError(f"frames={units}: give at least 2, one of which is the needle's")
        self._folder = Path(videos).expanduser()
        self._videos, self._needles = video_files(self._folder), read_needles(needles)
        self._units, self._place, self._seed = units, place, seed
        self.count = min(128, len(self._videos)) * len(self._needles)

    def about(self) -> dict[str, Any]:
        """See `Source.about`."""
        needles = [(blake2b(n.image.read_bytes()).hexdigest(), n.question) for n in self._needles]
        known = digest(list(self._videos), needles)
        return {
            "source": "images in videos",
            "videos": str(self._folder.resolve()),
            "needles": len(needles),
            "files": known,
            "units": self._units,
            "place": self._place,
            "seed": self._seed,
        }

    def samples(self, count: int) -> list[Haystack]:
        """See `Source.samples`; every needle in one video, then in the next."""
        order = sorted(self._videos, key=lambda name: digest("video", self._seed, name))
        found = []
        for name in order[: -(-count // len(self._needles))]:
            for number, needle in enumerate(self._needles):
                drawn = random.Random(digest("place", self._seed, name, needle.image.name, needle.question))
                found.append(Haystack(f"{name}:{number}", name, needle.question, drawn.randrange(self._units)))
        return found[:count]

    def check(self, samples: Sequence[Haystack], frames_per_unit: int) -> None:
        """See `Source.check`."""
        for name in dict.fromkeys(sample.video for sample in samples):
            path = str(self._folder / name)
            _check_frames(path, check_video(path)[0], self._of_video(frames_per_unit))

    def _of_video(self, frames_per_unit: int) -> int:
        """How many frames are the video's own."""
        return (self._units - (self._place == "insert")) * frames_per_unit

    def read(self, sample: Haystack, frames_per_unit: int) -> Tensor:
        """See `Source.read`."""
        needle = self._needles[int(sample.id.rsplit(":", 1)[1])]
        frames = spread_frames(str(self._folder / sample.video), self._of_video(frames_per_unit))
        picture = stretched(read_picture(needle.image), frames.shape[1:3]).expand(frames_per_unit, -1, -1, -1)
        start = sample.unit * frames_per_unit
        behind = start if self._place == "insert" else start + frames_per_unit
        return torch.cat([frames[:start], picture, frames[behind:]])


@lru_cache(maxsize=1)
def spread_frames(path: str, count: int) -> Tensor:
    """Frames from the first to the last of a video, evenly: ``(count, height, width, 3)`` uint8, not to be changed.

    Samples about one video come one behind the other, and decoding it takes longer than a small model does.
    """

    def work(video: VideoFile) -> Tensor:
        _check_frames(path, video.frames, count)
        return video.read(video.shown(np.linspace(0, video.frames - 1, count).round().astype(int).tolist()))

    return with_video(path, work)


def _check_frames(path: str, frames: int, count: int) -> None:
    if frames < count:
        raise VideoError(f"{path}: has {frames} frames; {count} are asked for, so give fewer --frames")


def video_files(folder: Path) -> list[str]:
    """The video files in a folder and the folders in it, as paths from there.

    Raises
    ------
    OptionError
        If there are none.
    """
    if not folder.is_dir():
        raise OptionError(f"videos={folder}: no such folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _VIDEOS and file.is_file())
    if not files:
        raise OptionError(f"videos={folder}: has no video ({', '.join(_VIDEOS)})")
    return [str(file.relative_to(folder)) for file in files]
