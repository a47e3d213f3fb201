"""Opening a video file and taking frames out of it; every failure names the file.

Readers of lmms-eval and qwen-vl-utils answer a decoding error by trying another decoder, whose own failure then hides
the first, or by an answer; these do neither.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import av
import numpy as np
import torch
from torch import Tensor

from lmms_flexselect.errors import VideoError, first_line

LEAST_FRAMES = 2
_FRAMES_AT_ONCE = 32  # bounds memory, changes nothing
_CLOSE = 2  # frames passed for each one wanted
_TOLERATED_LOSS = 0.05  # headers round, and sound may go on after the picture; half a second is tolerated too


@dataclass
class VideoFile:
    """An open video.

    Attributes
    ----------
    path
        Where it lies.
    frames
        How many it has.
    fps
        Their average rate.
    decoder
        What reads it, ``"decord"`` or ``"pyav"``.
    """

    path: str
    frames: int
    fps: float
    decoder: str
    _read: Callable[[Sequence[int]], np.ndarray] = field(repr=False)

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames at `indices`, ascending: ``(frames, height, width, 3)`` uint8.

        Raises
        ------
        VideoError
            If they cannot be decoded.
        """
        try:
            return torch.from_numpy(self._read(indices))
        except Exception as error:
            reason = first_line(error)
            raise VideoError(f"{self.path}: decoding failed, the file may be truncated ({reason})") from None

    def parts(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """The same, some frames at a time, for what need not lie in memory whole."""
        for start in range(0, len(indices), _FRAMES_AT_ONCE):
            yield self.read(indices[start : start + _FRAMES_AT_ONCE])


def file_complaint(path: str) -> str | None:
    """What is wrong with a video file without opening it, or None."""
    if not os.path.exists(path):
        return "no such video file"
    if os.path.isdir(path):
        return "is a folder, not a video file"
    return None if os.path.getsize(path) else "the video file is empty"


def video_length(path: str) -> tuple[int, float] | None:
    """Frames and frame rate of a video as its header has them, at little cost; None if there are none to be had."""
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            frames = stream.frames or round(float(container.duration or 0) / av.time_base * fps)
    except (av.FFmpegError, OSError, IndexError):
        return None
    return (frames, fps) if frames and fps else None


def open_video(path: str, decoder: str = "decord") -> VideoFile:
    """Open a video file.

    Parameters
    ----------
    path
        Of the file.
    decoder
        ``"decord"`` or ``"pyav"``.

    Raises
    ------
    VideoError
        If the file is missing, empty, not a video, shorter than its header says, or of fewer than two frames.
    """
    if complaint := file_complaint(path):
        raise VideoError(f"{path}: {complaint}")
    try:
        video = {"decord": _decord, "pyav": _pyav}[decoder](path)
    except Exception as error:
        # Both decoders quote the path, which is there already.
        reason = re.sub(rf"[:\s]*['\"]?{re.escape(path)}['\"]?[.\s]*", "", first_line(error))
        raise VideoError(f"{path}: not a readable video ({reason})") from None
    if video.frames < LEAST_FRAMES:
        raise VideoError(f"{path}: has {video.frames} frame(s); at least {LEAST_FRAMES} are needed")
    _check_length(video)
    return video


def _decord(path: str) -> VideoFile:
    import decord

    reader = decord.VideoReader(path)

    def read(indices: Sequence[int]) -> np.ndarray:
        first, last = min(indices), max(indices)
        if last - first < _CLOSE * len(indices):
            # Read with those between them: decord would look for each on its own.
            return reader.get_batch(range(first, last + 1)).asnumpy()[[index - first for index in indices]]
        return reader.get_batch(indices).asnumpy()

    return VideoFile(path, len(reader), reader.get_avg_fps(), "decord", read)


def _pyav(path: str) -> VideoFile:
    with av.open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        # Matroska and WebM do not store the number of frames.
        frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if not fps:
        raise ValueError("its frame rate is unknown")

    decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
    following = frames  # the number of the next frame out of `decoded`

    def read(indices: Sequence[int]) -> np.ndarray:
        nonlocal decoded, following
        wanted = set(indices)
        taken: dict[int, np.ndarray] = {}
        if min(wanted) < following:  # there is no going back
            decoded, following = enumerate(_decoded(path)), 0
        while len(taken) < len(wanted):
            number, frame = next(decoded, (None, None))
            if number is None or frame is None:
                following = frames
                raise ValueError(f"it ends before frame {min(wanted - set(taken))}")
            following = number + 1
            if number in wanted:
                taken[number] = frame.to_ndarray(format="rgb24")
        return np.stack([taken[index] for index in indices])

    return VideoFile(path, frames, fps, "pyav", read)


def _decoded(path: str) -> Iterator[av.VideoFrame]:
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def _check_length(video: VideoFile) -> None:
    """Compare what can be read with what the header promises.

    Formats that need no index (Matroska, WebM, AVI) stay readable when they are cut off, as a shorter video.
    """
    with suppress(av.FFmpegError, IndexError), av.open(video.path) as container:
        stream = container.streams.video[0]
        promised = float(container.duration or 0) / av.time_base
        if stream.duration and stream.time_base:
            promised = float(stream.duration * stream.time_base)
        frames = max(stream.frames, promised * video.fps)
        if video.frames < frames * (1 - _TOLERATED_LOSS) - video.fps / 2:
            raise VideoError(f"{video.path}: holds {video.frames} of {frames:.0f} frames; the file may be truncated")
