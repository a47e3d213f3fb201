"""When each frame of a video is shown, and which packets it is decoded from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmms_flexselect.video.packets import NO_TIME, Packets

# FFmpeg joins what is further apart than this in containers whose clocks may start anew.
_JUMP_SECONDS = 10.0
_CLOCKS_MAY_JUMP = ("mpegts", "mpeg", "mpegvideo", "vob")
_TOLERATED_FRAMES = 1.5
_LOST_AT_CUTS = 4  # a cut without encoding anew leaves out some of the last pictures
# Of these, containers and codecs, what they say of key frames is relied upon.
_KEYS_IN = ("mov", "matroska", "mpegts", "flv", "avi")
_KEYS_OF = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "libaom-av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg")
_FALLBACK_RATE = 25.0


@dataclass
class Timeline:
    """The frames of a video in the order in which they are shown.

    Attributes
    ----------
    times
        ``(frames,)`` float64: seconds from the first frame, ascending.
    rate
        Frames per second: what the file says where its frames keep to that, else their average.
    constant
        Whether frame i is shown at ``i / rate``.
    pts
        ``(frames,)`` int64: the time stamp by which the decoder's frame is known; None where frames are known by their
        order alone, so that a decoder has to start at the beginning.
    packet
        ``(frames,)`` int64: of each frame, which packet holds it; None as for `pts`.
    start
        ``(frames,)`` int64: of each frame, the packet to begin decoding at; None as for `pts`.
    """

    times: np.ndarray
    rate: float
    constant: bool
    pts: np.ndarray | None = None
    packet: np.ndarray | None = None
    start: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return len(self) / self.rate

    def shown(self, indices: Sequence[int]) -> list[int]:
        """The frames for `indices` that a rule for constant rates has chosen: those shown at ``index / rate``.

        If every index is among them, every frame is.
        """
        if self.constant or len(set(indices)) == len(self):
            return list(indices)
        slack = 1e-3 / self.rate  # a frame that begins at that very instant is shown then
        instants = np.asarray(indices) / self.rate + slack
        return (np.searchsorted(self.times, instants, side="right") - 1).clip(0, len(self) - 1).tolist()


def is_regular(packets: Packets) -> bool:
    """Whether presentation times can be told from packets: every one is there, once, and the clock never jumps."""
    shown = packets.pts[~packets.hidden]
    if not len(shown) or (packets.pts == NO_TIME).any() or len(np.unique(shown)) < len(shown):
        return False
    steps = np.diff(packets.dts[packets.dts != NO_TIME]) * float(packets.time_base)
    if packets.container in _CLOCKS_MAY_JUMP and (np.abs(steps) > _JUMP_SECONDS).any():
        return False
    return not (steps < -0.1).any()


def leading(packets: Packets) -> np.ndarray:
    """Which packets hold pictures that are decoded after a key frame, but shown before it: ``(packets,)`` bool."""
    newest_key = np.maximum.accumulate(np.where(packets.key, np.arange(len(packets)), -1))
    return (newest_key < 0) | (packets.pts < packets.pts[newest_key])


def starts_open(packets: Packets) -> bool:
    """Whether the first group of pictures lacks some, since the video was cut out of another without encoding anew."""
    first_group = np.cumsum(packets.key) <= 1
    return bool(((leading(packets) | packets.hidden | (packets.pts == NO_TIME)) & first_group).any())


def timeline_of_packets(packets: Packets, undecodable: Sequence[int] = ()) -> Timeline:
    """Of a stream for which `is_regular` holds.

    Parameters
    ----------
    packets
        Of the stream.
    undecodable
        Time stamps of pictures that no decoder can show, since what they refer to was cut away.
    """
    visible = np.flatnonzero(~packets.hidden & ~np.isin(packets.pts, np.asarray(undecodable, np.int64)))
    order = visible[np.argsort(packets.pts[visible], kind="stable")]
    pts = packets.pts[order]
    times, rate, constant = _rated((pts - pts[0]) * float(packets.time_base), _last_duration(packets, order), packets)
    return Timeline(times, rate, constant, pts, order, _starts(packets, order))


def timeline_of_frames(stamps: Sequence[int | None], packets: Packets) -> Timeline:
    """Of the time stamps of all frames, in the order in which a decoder gave them out.

    Where they are missing, or a clock starts anew, the frames follow each other at the rate of the file.
    """
    rate = packets.rates[-1] if packets.rates else _FALLBACK_RATE
    if any(stamp is None for stamp in stamps):
        times = np.arange(len(stamps)) / rate
    elif packets.container in _CLOCKS_MAY_JUMP:
        steps = np.diff(np.array(stamps, np.float64)) * float(packets.time_base)
        steps[(steps <= 0) | (steps > _JUMP_SECONDS)] = 1 / rate
        times = np.concatenate([[0.0], np.cumsum(steps)])
    else:
        ascending = np.sort(np.array(stamps, np.int64))
        times = (ascending - ascending[0]) * float(packets.time_base)
    return Timeline(*_rated(times, 0.0, packets))


def _last_duration(packets: Packets, order: np.ndarray) -> float:
    return float(packets.duration[order[-1]] * packets.time_base)


def _rated(times: np.ndarray, last: float, packets: Packets) -> tuple[np.ndarray, float, bool]:
    """Times, the frame rate, and whether it is constant."""
    for rate in packets.rates:
        if _keeps_to(times, rate):
            return times, rate, True
    if len(times) < 2:
        return times, packets.rates[0] if packets.rates else _FALLBACK_RATE, True
    average = times[-1] / (len(times) - 1)
    # A last frame that says nothing, or lasts as long as many, is taken for an average one.
    rate = len(times) / (times[-1] + (last if 0 < last <= 2 * np.diff(times).max() else average))
    return times, rate, _keeps_to(times, rate)


def _keeps_to(times: np.ndarray, rate: float) -> bool:
    """Whether frame i is shown at ``i / rate``, as nearly as a file says it that was cut without encoding anew."""
    off = np.abs(times * rate - np.arange(len(times)))
    return bool((off[:-_LOST_AT_CUTS] <= _TOLERATED_FRAMES).all() and off.max() <= _LOST_AT_CUTS)


def _starts(packets: Packets, order: np.ndarray) -> np.ndarray:
    """For each packet in `order` the last key frame before it that is not shown after it; else the first packet."""
    if packets.container not in _KEYS_IN or packets.codec not in _KEYS_OF:
        return np.zeros(len(order), np.int64)
    keys = np.flatnonzero(packets.key)
    if not len(keys):
        return np.zeros(len(order), np.int64)
    at = np.searchsorted(keys, order, side="right") - 1
    starts = keys[at.clip(0)]
    too_late = (packets.pts[starts] > packets.pts[order]) & (at > 0)
    starts = np.where(too_late, keys[(at - 1).clip(0)], starts)
    return np.where((at < 0) | (packets.pts[starts] > packets.pts[order]), 0, starts)
