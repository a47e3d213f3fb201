"""What is missing from a video file or broken in it, said in seconds."""

from __future__ import annotations

import os
import struct

import numpy as np

from lmms_flexselect.video.packets import NO_TIME, Packets
from lmms_flexselect.video.timeline import Timeline

_TOLERATED_SECONDS = 0.5  # headers round
_TOLERATED_SHARE = 0.05
_REMEDY = "copy or download it again"


def missing_bytes(path: str) -> int:
    """How many bytes a file lacks of what its own structure says; 0 if none, or if it has no such structure."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return _lacking_boxes(file, size)
        if head[:4] == b"RIFF":
            return _lacking_chunks(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _lacking_segment(file, size)
    return 0


def _lacking_boxes(file, size: int) -> int:  # type: ignore[no-untyped-def]
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        (length,) = struct.unpack(">I", head[:4])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:  # 0: to the end of the file
            return 0
        at += length
    return max(0, at - size)


def _lacking_chunks(file, size: int) -> int:  # type: ignore[no-untyped-def]
    at = 0
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF":
            return 0
        at += 8 + length + length % 2
    return at - size if at > size + 1 else 0


def _lacking_segment(file, size: int) -> int:  # type: ignore[no-untyped-def]
    """Of Matroska: a header element, then a segment, whose length may be left open."""
    file.seek(0)
    head = file.read(4096)
    at = 4
    header, width = _ebml_length(head, at)
    at += width + (header or 0)
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, width = _ebml_length(head, at + 4)
    return 0 if length is None else max(0, at + 4 + width + length - size)


def _ebml_length(data: bytes, at: int) -> tuple[int | None, int]:
    """A length, None for one that is left open, and how many bytes say it."""
    if at >= len(data) or not data[at]:
        return None, 0
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
    return (None if value == (1 << 7 * width) - 1 else value), width


def missing_end(path: str, packets: Packets, timeline: Timeline) -> str | None:
    """That the pictures end before the header of their own stream says, or a packet is cut, or None."""
    shown = timeline.seconds
    lacking = missing_bytes(path)
    if lacking:
        return f"is truncated: {lacking:,} bytes are missing behind {shown:.1f} s of pictures; {_REMEDY}"
    if packets.error is not None:
        return f"is damaged behind {shown:.1f} s of pictures ({packets.error}); {_REMEDY}"
    if len(packets) and packets.corrupt[-1]:
        return f"is truncated: its last picture, at {shown:.1f} s, is cut off; {_REMEDY}"
    promised = packets.promised_seconds
    if promised is not None and len(packets):
        stamps = np.where(packets.pts == NO_TIME, packets.dts, packets.pts)
        last = max(0, int(stamps.max()))
        end = float(last * packets.time_base) + max(1 / timeline.rate, _longest_step(timeline))
        if promised - end > max(_TOLERATED_SECONDS, _TOLERATED_SHARE * promised):
            return f"is truncated: its pictures end at {end:.1f} of {promised:.1f} s; {_REMEDY}"
    return None


def damaged_at(packets: Packets, timeline: Timeline, packet: int | None) -> str:
    """That pictures cannot be decoded from a packet on, until the next key frame."""
    if packet is None:
        return f"is damaged: not every picture that was asked for can be decoded; {_REMEDY} or encode it anew"
    keys = np.flatnonzero(packets.key)
    following = keys[keys > packet]
    start = _second_of(packets, timeline, packet)
    end = _second_of(packets, timeline, int(following[0])) if len(following) else timeline.seconds
    return f"is damaged from {start:.1f} s to {max(start, end):.1f} s; {_REMEDY} or encode it anew"


def _second_of(packets: Packets, timeline: Timeline, packet: int) -> float:
    if timeline.pts is None:
        return float(timeline.times[min(packet, len(timeline) - 1)])
    return max(0.0, float((packets.pts[packet] - timeline.pts[0]) * packets.time_base))


def _longest_step(timeline: Timeline) -> float:
    return float(np.diff(timeline.times).max(initial=0.0))
