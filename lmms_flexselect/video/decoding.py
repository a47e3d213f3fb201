"""Taking frames out of a video file: the packets that they need are decoded, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from lmms_flexselect.video.packets import NO_TIME, Packets, open_container
from lmms_flexselect.video.timeline import Timeline, leading
from lmms_flexselect.video.watchdog import Progress

# Codecs whose decoder leaves out, if told to, exactly the pictures that no other refers to.
_SKIPS_UNREFERENCED = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
_SEEKABLE = ("mov", "matroska")
_WORTH_SEEKING = 64  # packets; reading past fewer is as quick
_COUNTING = {"skip_loop_filter": "all", "skip_idct": "all"}  # what is seen does not matter


class NotDecoded(Exception):
    """A frame that was asked for did not come out as a look at the packets foretold.

    Attributes
    ----------
    packet
        Which packet could not be decoded, if that is known.
    unforeseen
        The decoder complained of nothing.
    """

    def __init__(self, packet: int | None = None, unforeseen: bool = False) -> None:
        super().__init__()
        self.packet, self.unforeseen = packet, unforeseen


class Care(Enum):
    """How frames are decoded."""

    QUICKLY = "in threads, from the last key frame on, without pictures that nothing refers to"
    IN_STEP = "all from the key frame before that on, in one thread, so that it is known which packet is broken"
    LENIENTLY = "the same, and what the decoder complains of is no error"


@dataclass
class Source:
    """A file that was looked at, and what is told of every step that is made in it."""

    path: str
    packets: Packets
    timeline: Timeline
    progress: Progress


def decode(source: Source, wanted: Sequence[int], care: Care = Care.QUICKLY) -> Iterator[tuple[int, np.ndarray]]:
    """The frames at `wanted`, ascending and different: each number, and ``(height, width, 3)`` uint8.

    Parameters
    ----------
    source
        See `Source`.
    wanted
        Numbers of frames in presentation order.
    care
        See `Care`.

    Raises
    ------
    NotDecoded
        If one did not come, or came damaged. Those before it were given out.
    """
    with open_container(source.path) as container:
        stream = container.streams[source.packets.stream]
        if source.timeline.pts is None:
            yield from _by_order(source, container, stream, wanted, care)
        else:
            yield from _ByTime(source, container, stream, care).frames(wanted)


def time_stamps(path: str, packets: Packets, progress: Progress, until: int | None = None) -> list[int | None]:
    """Of every frame that a decoder gives out, in its order; up to the first one later than `until`."""
    stamps: list[int | None] = []
    with open_container(path) as container:
        stream = container.streams[packets.stream]
        stream.thread_type = "AUTO"
        stream.codec_context.options = _COUNTING
        for packet in _until_error(container.demux(stream)):
            progress()
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            stamps += [frame.pts for frame in decoded]
            if until is not None and any(stamp is not None and stamp > until for stamp in stamps[-len(decoded) :]):
                break
    return stamps


def upright(frame: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """A frame's pixels as a player shows them: ``(height, width, 3)`` uint8, turned and mirrored by its header.

    `size` is the width and height to which a later frame of another size is scaled.
    """
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    width, height = size or (frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(int(b)) > abs(int(a)):  # x and y change places: x' = c y, y' = b x
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _prepare(stream: Any, care: Care, frame_threads: bool = True) -> None:
    stream.thread_type = "AUTO" if frame_threads and care is Care.QUICKLY else "SLICE"
    if care is not Care.QUICKLY:
        stream.codec_context.thread_count = 1
    if care is not Care.LENIENTLY:
        stream.codec_context.options = {"err_detect": "explode+crccheck"}


def _by_order(
    source: Source, container: Any, stream: Any, wanted: Sequence[int], care: Care
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames that are known by their order alone."""
    _prepare(stream, care)
    waiting, count = set(wanted), 0
    size = None
    for number, packet in enumerate(_until_error(container.demux(stream))):
        source.progress()
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            if care is not Care.LENIENTLY:
                raise NotDecoded(number) from None
            continue
        for frame in decoded:
            if count in waiting:
                if frame.is_corrupt:
                    raise NotDecoded(number)
                pixels = upright(frame, size)
                size = size or (frame.width, frame.height)
                yield count, pixels
                waiting.discard(count)
            count += 1
        if not waiting:
            return
    raise NotDecoded


class _ByTime:
    """Decodes frames that are known by their time stamps, skipping what lies between them."""

    def __init__(self, source: Source, container: Any, stream: Any, care: Care) -> None:
        packets, timeline = source.packets, source.timeline
        assert timeline.pts is not None
        assert timeline.packet is not None
        assert timeline.start is not None
        self._packets, self._progress, self._container, self._stream = packets, source.progress, container, stream
        self._pts, self._packet, self._start = timeline.pts, timeline.packet, timeline.start
        self._leading, self._care = leading(packets), care
        # A decoder of several threads tells of an error some packets late. Behind the open end of a group of pictures
        # errors are to be expected, so it must be known which packets they are of.
        _prepare(stream, care, frame_threads=not self._leading[1:].any())
        self._context = stream.codec_context
        self._skips = care is Care.QUICKLY and packets.codec in _SKIPS_UNREFERENCED
        self._feed = self._numbered(0)
        self._position = 0  # of the next packet
        self._size: tuple[int, int] | None = None

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for first, last, frames in self._runs(wanted):
            self._go_to(first)
            following = iter(frames)
            expected = next(following)
            early: dict[int, np.ndarray] = {}
            for index, pixels in self._of_run(first, last, frames):
                early[index] = pixels
                while expected in early:
                    yield expected, early.pop(expected)
                    expected = next(following, -1)
            if expected != -1:
                raise NotDecoded(int(self._packet[expected]), unforeseen=True)

    def _of_run(self, first: int, last: int, frames: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        waiting = {int(self._pts[frame]): frame for frame in frames}
        needed = {int(self._packet[frame]) for frame in frames}
        begun = not first or bool(self._packets.hidden[first])
        own = int(self._start[frames[0]])  # what is decoded before that is of no consequence
        for number, packet in self._packets_of(first, last):
            if self._skips:
                self._context.skip_frame = "DEFAULT" if number in needed else "NONREF"
            try:
                decoded = self._context.decode(packet)
            except av.FFmpegError:
                if number >= own and not self._leading[number] and self._care is not Care.LENIENTLY:
                    raise NotDecoded(number) from None
                continue
            for frame in decoded:
                if frame.pts == self._packets.pts[first]:
                    begun = begun or frame.pict_type == PictureType.I
                if (index := waiting.pop(frame.pts, None)) is not None:
                    if not begun:  # what is called a key frame renews a part of the picture only
                        raise NotDecoded(unforeseen=True)
                    if frame.is_corrupt:
                        raise NotDecoded(int(self._packet[index]))
                    pixels = upright(frame, self._size)
                    self._size = self._size or (frame.width, frame.height)
                    yield index, pixels

    def _runs(self, wanted: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
        """What to decode without a break: the first and the last packet, and the frames that come of them."""
        first, last = 0, -1
        frames: list[int] = []
        for frame in wanted:
            start, packet = int(self._start[frame]), int(self._packet[frame])
            if self._care is not Care.QUICKLY:
                earlier = np.flatnonzero(self._packets.key[:start])
                start = int(earlier[-1]) if len(earlier) else 0
            if frames and start > last + 1:
                yield first, last, frames
                frames = []
            if not frames:
                first = start
            last = max(last, packet)
            frames.append(frame)
        if frames:
            yield first, last, frames

    def _go_to(self, first: int) -> None:
        """Have `first` come, in a decoder that knows of nothing before it."""
        packets = self._packets
        if first > self._position + _WORTH_SEEKING and packets.container in _SEEKABLE:
            before = self._position
            time = packets.pts if packets.container == "matroska" or packets.dts[first] == NO_TIME else packets.dts
            self._container.seek(int(time[first]), stream=self._stream)
            landed = next(iter(self._container.demux(self._stream)))
            numbers = np.flatnonzero((packets.pts == landed.pts) & packets.key)  # none if `landed` has no time
            self._container.seek(int(time[first]), stream=self._stream)
            if len(numbers) == 1 and before <= numbers[0] <= first:
                self._feed = self._numbered(int(numbers[0]))
            else:  # what the file says of its key frames is not so: read on from its beginning
                self._container.seek(int(time[0]), stream=self._stream)
                self._feed = self._numbered(0)
        if self._position:
            self._context.flush_buffers()

    def _numbered(self, start: int) -> Iterator[tuple[int, Any]]:
        with_data = (packet for packet in _until_error(self._container.demux(self._stream)) if packet.size)
        return enumerate(with_data, start)

    def _packets_of(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """The packets from `first` to `last` with their numbers, and None at the end for what the decoder holds."""
        for number, packet in self._feed:
            self._progress()
            self._position = number + 1
            if number >= first:
                yield number, packet
            if number >= last:
                break
        yield last, None


def _until_error(packets: Iterator[Any]) -> Iterator[Any]:
    """What can be read of a file; that the rest cannot was found by the look at its packets."""
    with suppress(av.FFmpegError, OSError):
        yield from packets
