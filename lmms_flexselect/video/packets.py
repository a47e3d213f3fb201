"""A look at the packets of a video's picture stream, without decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from lmms_flexselect.errors import first_line
from lmms_flexselect.video.watchdog import Progress

NO_TIME = np.iinfo(np.int64).min
# These are not videos, or lead to other files.
_REFUSED_FORMATS = ("tty", "concat", "hls", "applehttp", "dash", "sdp", "rtsp", "image2", "ffmetadata", "srt", "ass")


@dataclass
class Packets:
    """The packets of one stream in the order of decoding.

    Attributes
    ----------
    pts, dts
        ``(packets,)`` int64 in units of `time_base`: when the picture is shown and when it is decoded; `NO_TIME` where
        the file does not say.
    duration
        ``(packets,)`` int64, 0 where the file does not say.
    key, hidden, corrupt
        ``(packets,)`` bool: a decoder can start here; the picture is decoded but not shown; the container knows that
        bytes are missing.
    time_base
        In seconds.
    rates
        Frames per second as the file has it, and as FFmpeg guesses it; empty if neither is known.
    container, codec
        FFmpeg's names, of the container the first.
    reorders
        Whether the decoder expects pictures that are decoded in another order than shown.
    stream
        Its number in the file.
    promised_seconds
        How long the header says that this stream is, from time 0; None if it does not.
    error
        What ended the look before the end of the file, or None.
    """

    pts: np.ndarray
    dts: np.ndarray
    duration: np.ndarray
    key: np.ndarray
    hidden: np.ndarray
    corrupt: np.ndarray
    time_base: Fraction
    rates: tuple[float, ...]
    container: str
    codec: str
    reorders: bool
    stream: int
    promised_seconds: float | None
    error: str | None

    def __len__(self) -> int:
        return len(self.pts)


def open_container(path: str) -> Any:
    """PyAV's container of a file, which opens no other file.

    Raises
    ------
    ValueError
        If it is none that holds pictures of its own.
    """
    container = av.open(path, container_options={"protocol_whitelist": "file"}, metadata_errors="ignore")
    if container.format.name.split(",")[0] in _REFUSED_FORMATS or container.format.name.endswith("_pipe"):
        name = container.format.name
        container.close()
        raise ValueError(f"it is taken for {name}, which is not a video")
    return container


def picture_stream(container: Any) -> Any:
    """The stream of pictures that a player shows: the default one, and of several the largest.

    Raises
    ------
    ValueError
        If there is none.
    """
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still and stream.codec_context]
    if not streams:
        raise ValueError("it has no moving pictures; give the file that has them")

    def rank(stream: Any) -> tuple[bool, int]:
        context = stream.codec_context
        return bool(stream.disposition & av.stream.Disposition.default), context.width * context.height

    return max(streams, key=rank)


def look_at_packets(path: str, progress: Progress) -> Packets:
    """Read all packets of the picture stream.

    Raises
    ------
    ValueError, OSError, av.FFmpegError
        If the file is no video.
    """
    rows: list[tuple[int, int, int, bool, bool, bool]] = []
    with open_container(path) as container:
        stream = picture_stream(container)
        codec = stream.codec_context.name
        error = None
        progress()
        try:
            for packet in container.demux(stream):
                progress()
                if not packet.size:
                    continue
                hidden = packet.is_discard or (codec == "vp8" and not memoryview(packet)[0] & 0x10)
                pts, dts = (NO_TIME if time is None else time for time in (packet.pts, packet.dts))
                rows.append((pts, dts, packet.duration or 0, packet.is_keyframe, hidden, packet.is_corrupt))
        except (av.FFmpegError, OSError) as failure:
            error = first_line(failure)
        times = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3).T
        flags = np.array([row[3:] for row in rows], bool).reshape(-1, 3).T
        return Packets(
            pts=times[0],
            dts=times[1],
            duration=times[2],
            key=flags[0],
            hidden=flags[1],
            corrupt=flags[2],
            time_base=stream.time_base,
            rates=tuple(float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate),
            container=container.format.name.split(",")[0],
            codec=codec,
            reorders=stream.codec_context.has_b_frames,
            stream=stream.index,
            promised_seconds=_promised_seconds(stream, container.format.name),
            error=error,
        )


def _promised_seconds(stream: Any, container: str) -> float | None:
    """Only what the container keeps for this stream by itself."""
    tag = next((value for name, value in stream.metadata.items() if name.upper().startswith("DURATION")), "")
    try:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        pass
    if container == "avi" and stream.duration:
        return float(stream.duration * stream.time_base)
    return None
