"""Opening a video file and taking frames out of it; every failure names the file."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lmms_flexselect.errors import VideoError, first_line
from lmms_flexselect.video import damage, decord_reader
from lmms_flexselect.video.decoding import Care, NotDecoded, Source, decode, time_stamps
from lmms_flexselect.video.file import FileIdentity, change_complaint, file_complaint, file_identity
from lmms_flexselect.video.packets import Packets, look_at_packets
from lmms_flexselect.video.timeline import (
    Timeline,
    is_regular,
    leading,
    starts_open,
    timeline_of_frames,
    timeline_of_packets,
)
from lmms_flexselect.video.watchdog import DEFAULT_TIMEOUT, Progress, watched

Result = TypeVar("Result")
DECODERS = ("pyav", "decord")
LEAST_FRAMES = 2
_FEWEST_DECODED = 0.98
_FRAMES_FOR_ORDER = 64
_PIXELS_AT_ONCE = 16 * 1920 * 1080  # bounds memory, changes nothing


@dataclass(frozen=True)
class Backend:
    """What reads videos, and how long it may be silent.

    Attributes
    ----------
    decoder
        One of `DECODERS`.
    timeout
        Seconds without a packet, a frame or a resized part after which a file is given up.
    """

    decoder: str = "pyav"
    timeout: float = DEFAULT_TIMEOUT


PYAV = Backend()


@dataclass
class VideoFile:
    """A video file that was looked at.

    Attributes
    ----------
    path
        Where it lies.
    timeline
        When its frames are shown.
    decoder
        What takes frames out of it, ``"pyav"`` or ``"decord"``.
    """

    path: str
    timeline: Timeline
    decoder: str
    packets: Packets
    identity: FileIdentity | None
    progress: Progress

    @property
    def frames(self) -> int:
        """How many it has."""
        return len(self.timeline)

    @property
    def fps(self) -> float:
        """Their rate, of a variable one the average."""
        return self.timeline.rate

    def shown(self, indices: Sequence[int]) -> list[int]:
        """See `Timeline.shown`."""
        return self.timeline.shown(indices)

    def seconds(self, frames: Sequence[int]) -> list[float]:
        """When frames are shown, from the first one."""
        return self.timeline.times[list(frames)].tolist()

    def read(self, frames: Sequence[int]) -> Tensor:
        """The frames of these numbers, ascending: ``(frames, height, width, 3)`` uint8.

        Raises
        ------
        VideoError
            If they cannot be decoded.
        """
        return torch.cat(list(self.parts(frames)))

    def parts(self, frames: Sequence[int]) -> Iterator[Tensor]:
        """The same, some frames at a time, for what need not lie in memory whole."""
        times = Counter(frames)
        part: list[np.ndarray] = []
        for number, pixels in self._decoded(sorted(times)):
            part += [pixels] * times[number]
            if len(part) * pixels.shape[0] * pixels.shape[1] >= _PIXELS_AT_ONCE:
                yield torch.from_numpy(np.stack(part))
                part = []
        if part:
            yield torch.from_numpy(np.stack(part))
        if complaint := change_complaint(self.path, self.identity):
            raise VideoError(f"{self.path}: {complaint}")

    def resized(self, frames: Sequence[int], resize: Callable[[Tensor], Tensor]) -> Tensor:
        """The same, each part passed through `resize` before the next is decoded."""
        made: Tensor | None = None
        filled = 0
        for part in self.parts(frames):
            small = resize(part)
            if made is None:  # joining the parts at the end would hold all of them twice
                made = small.new_empty((len(frames), *small.shape[1:]))
            made[filled : filled + len(small)] = small
            filled += len(small)
            self.progress()
        assert made is not None
        return made

    def _decoded(self, frames: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        source = Source(self.path, self.packets, self.timeline, self.progress)
        if self.decoder == "decord":
            yield from decord_reader.decode(source, frames)
            return
        left, care = deque(frames), Care.QUICKLY
        while left:
            try:
                batch = list(left) if care is Care.QUICKLY else self._together(left)
                for number, pixels in decode(source, batch, care):
                    left.popleft()
                    yield number, pixels
                care = Care.QUICKLY
            except NotDecoded as failure:
                care = self._more_care(care, failure)

    def _together(self, frames: Sequence[int]) -> list[int]:
        """Those of `frames` that need the same key frame as the first."""
        start = self.timeline.start
        return [f for f in frames if start is None or start[f] == start[frames[0]]]

    def _more_care(self, care: Care, failure: NotDecoded) -> Care:
        """How to try again. Raises if that is of no use."""
        if care is Care.QUICKLY and not (failure.unforeseen and failure.packet is None):
            return Care.IN_STEP
        if failure.unforeseen and self.timeline.pts is not None:
            raise _Unforeseen
        second_key = np.flatnonzero(np.cumsum(self.packets.key) > 1)[:1]
        in_first_group = failure.packet is not None and (not len(second_key) or failure.packet < second_key[0])
        if care is Care.IN_STEP and in_first_group and starts_open(self.packets):
            return Care.LENIENTLY
        raise VideoError(f"{self.path}: {damage.damaged_at(self.packets, self.timeline, failure.packet)}")


class _Unforeseen(Exception):
    """The frames of a video cannot be told from its packets."""


def with_video(path: str, work: Callable[[VideoFile], Result], backend: Backend = PYAV) -> Result:
    """What `work` makes of a video, under a watchdog: opening it, decoding, and what is done with the frames.

    Parameters
    ----------
    path
        Of the file.
    work
        Runs in a thread of its own.
    backend
        See `Backend`.

    Raises
    ------
    VideoError
        If the file is missing, empty, not a video, of fewer than two frames, truncated, damaged where frames are taken
        from, changed while it was read, or reading it comes to a halt.
    """

    def run(progress: Progress) -> Result:
        try:
            return work(look(path, progress, backend.decoder))
        except _Unforeseen:
            return work(look(path, progress, backend.decoder, by_order=True))

    return watched(path, backend.timeout, run)


def open_video(path: str, decoder: str = "pyav", timeout: float = DEFAULT_TIMEOUT) -> VideoFile:
    """A video that was looked at; what is read of it afterwards is read without a watchdog. See `with_video`."""
    return with_video(path, lambda video: video, Backend(decoder, timeout))


def check_video(path: str, timeout: float = DEFAULT_TIMEOUT) -> tuple[int, float]:
    """Look at a video without decoding anything: how many frames it has, about, and how many a second.

    Raises
    ------
    VideoError
        If it is seen to be unreadable or truncated.
    """

    def run(progress: Progress) -> tuple[int, float]:
        video = look(path, progress, decodes=False)
        return video.frames, video.fps

    return watched(path, timeout, run)


def look(
    path: str, progress: Progress, decoder: str = "pyav", by_order: bool = False, decodes: bool = True
) -> VideoFile:
    """Look at a video's packets.

    Parameters
    ----------
    path
        Of the file.
    progress
        Told of each packet.
    decoder
        One of `DECODERS`.
    by_order
        Know frames by their order in any case, which takes decoding all of them.
    decodes
        Whether what packets alone do not tell may be found out by decoding; otherwise it is guessed.

    Raises
    ------
    VideoError
        See `with_video`.
    """
    if complaint := file_complaint(path):
        raise VideoError(f"{path}: {complaint}")
    identity = file_identity(path)
    try:
        packets = look_at_packets(path, progress)
        if not len(packets):
            raise ValueError(packets.error or "it has no pictures")
        timeline = _timeline(path, packets, progress, by_order, decodes)
    except Exception as error:
        # FFmpeg quotes the path, which is there already.
        reason = re.sub(rf"[:\s]*['\"]?{re.escape(path)}['\"]?[.\s]*", "", first_line(error))
        lacking = damage.missing_bytes(path)
        reason += f"; it is truncated, {lacking:,} bytes are missing" if lacking else ""
        raise VideoError(f"{path}: not a readable video ({reason}); play it to see, and copy it again") from None
    if complaint := damage.missing_end(path, packets, timeline):
        raise VideoError(f"{path}: {complaint}")
    if len(timeline) < LEAST_FRAMES:
        raise VideoError(f"{path}: has {len(timeline)} frame(s); at least {LEAST_FRAMES} are needed")
    if decoder == "decord" and (complaint := decord_reader.misreads(packets, timeline)):
        raise VideoError(f"{path}: decord would read other frames, {complaint}; give video_decode_backend=pyav")
    return VideoFile(path, timeline, decoder, packets, identity, progress)


def _timeline(path: str, packets: Packets, progress: Progress, by_order: bool, decodes: bool) -> Timeline:
    if by_order or not is_regular(packets):
        count = int((~packets.hidden).sum())
        stamps = time_stamps(path, packets, progress) if decodes else [None] * count
        if by_order and stamps and len(stamps) < _FEWEST_DECODED * count and abs(2 * len(stamps) - count) > 2:
            raise ValueError(f"only {len(stamps)} of {count} pictures can be decoded")
        return timeline_of_frames(stamps, packets)
    if decodes and _without_order(path, packets, progress):
        return _timeline(path, packets, progress, True, decodes)
    first_key = int(packets.key.argmax())
    doubtful = leading(packets) & ~packets.hidden & (np.cumsum(packets.key) <= 1)
    if not doubtful.any() or not decodes:
        return timeline_of_packets(packets)
    until = int(max(packets.pts[doubtful].max(), packets.pts[first_key]))
    come = time_stamps(path, packets, progress, until)
    return timeline_of_packets(packets, [int(pts) for pts in packets.pts[doubtful] if pts not in come])


def _without_order(path: str, packets: Packets, progress: Progress) -> bool:
    """Whether time stamps follow the order of decoding although pictures are shown in another."""
    if not packets.reorders or (np.diff(packets.pts) < 0).any():
        return False
    few = packets.pts[min(_FRAMES_FOR_ORDER, len(packets)) - 1]
    stamps = [stamp for stamp in time_stamps(path, packets, progress, int(few)) if stamp is not None]
    return sorted(stamps) != stamps
