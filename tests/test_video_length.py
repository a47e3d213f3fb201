"""How long a video is, as its header says."""

from __future__ import annotations

import av
import numpy as np
import pytest

from lmms_flexselect.video_file import video_length


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_length_from_the_header(tmp_path, suffix):
    """Matroska keeps no number of frames, only a length."""
    path = tmp_path / f"video.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(24):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, fps = video_length(str(path)) or (0, 0.0)
    assert abs(frames - 24) <= 1
    assert fps == pytest.approx(8)


def test_what_has_no_length(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"text")
    for path in ("bad.mp4", "none.mp4", "."):
        assert video_length(str(tmp_path / path)) is None
