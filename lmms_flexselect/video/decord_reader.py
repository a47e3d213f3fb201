"""The other reader, decord, in a process of its own: it can hang where nothing but killing ends it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lmms_flexselect.errors import VideoError, first_line
from lmms_flexselect.video.decoding import Source
from lmms_flexselect.video.packets import Packets
from lmms_flexselect.video.timeline import Timeline, leading

_CHILD = Path(__file__).with_name("decord_child.py")
_TRANSPORT = ("mpegts", "mpeg", "mpegvideo", "vob")


def misreads(packets: Packets, timeline: Timeline) -> str | None:
    """Why decord is known to give other frames than a player shows of such a file, or None."""
    if packets.container in _TRANSPORT:
        return "since this is an MPEG transport or program stream"
    if timeline.pts is None:
        return "since its packets do not say when they are shown"
    if packets.hidden.any():
        return "since it has pictures that are not shown, as a cut without encoding anew leaves them"
    if leading(packets).any():
        return "since its groups of pictures are open"
    if abs(float(timeline.pts[0] * packets.time_base)) > 1.5 / timeline.rate:
        return f"since its first picture is shown at {float(timeline.pts[0] * packets.time_base):.2f} s"
    if not timeline.constant:
        return "since its frame rate varies"
    return None


def decode(source: Source, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """See `lmms_flexselect.video.decoding.decode`."""
    command = [sys.executable, str(_CHILD), source.path, json.dumps([int(index) for index in wanted])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        source.progress.at_end = child.kill
        shape = child.stdout.readline().split()
        if len(shape) == 3 and int(shape[0]) != len(source.timeline):
            raise VideoError(
                f"{source.path}: decord finds {int(shape[0])} frames where {len(source.timeline)} are shown; "
                "give video_decode_backend=pyav"
            )
        for index in wanted if len(shape) == 3 else ():
            height, width = int(shape[1]), int(shape[2])
            data = child.stdout.read(height * width * 3)
            if len(data) < height * width * 3:
                break
            source.progress()
            yield index, np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3)
        else:
            if len(shape) == 3:
                return
        reason = first_line(RuntimeError(child.stderr.read().decode(errors="replace")))
        raise VideoError(f"{source.path}: decord cannot decode it ({reason}); give video_decode_backend=pyav")
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
