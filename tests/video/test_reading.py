"""Opening a video and taking frames out of it: the frames asked for, or one line that names the file."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import torch

from lmms_flexselect.errors import VideoError
from lmms_flexselect.video import reading
from lmms_flexselect.video.file import file_complaint
from lmms_flexselect.video.reading import open_video

DECODERS = ("decord", "pyav")
FRAMES = 120
# What each file is: container, codec, options of the container.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "index last.mp4": ("mp4", "libx264", {}),
    "index first.mp4": ("mp4", "libx264", {"movflags": "faststart"}),
    "video.mkv": ("matroska", "libx264", {}),
    "video.webm": ("webm", "libvpx", {}),
    "video.avi": ("avi", "mpeg4", {}),
}

pytestmark = pytest.mark.parametrize("decoder", DECODERS)


def shades(count):
    """Frames told apart by their brightness and noise, which a codec cannot store in a few bytes."""
    noise = np.random.default_rng(0).integers(0, 40, (count, 64, 80, 3))
    return (noise + np.linspace(0, 200, count).astype(int)[:, None, None, None]).astype(np.uint8)


def encode(path, frames, kind="index last.mp4", rate="25"):
    container, codec, options = KINDS[kind]
    with av.open(str(path), "w", format=container, options=options) as output:
        # B frames and distant key frames, as a phone or a site writes them.
        own = {"crf": "8", "g": "24", "bf": "3"} if codec == "libx264" else {"g": "24", "b": "4M"}
        stream: Any = output.add_stream(codec, rate=Fraction(rate), options=own)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {kind: encode(folder / kind, shades(FRAMES), kind) for kind in KINDS}


def one_line(work, path):
    """What an error says of a file, behind its path."""
    with pytest.raises(VideoError) as caught:
        work()
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def not_opened(path, decoder):
    return one_line(lambda: open_video(str(path), decoder), path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_where_it_was_written(files, decoder, kind):
    video = open_video(str(files[kind]), decoder)
    assert (video.path, video.frames, video.fps) == (str(files[kind]), FRAMES, 25.0)
    indices = [0, 1, 22, 23, 24, 25, 70, FRAMES - 1]
    frames = video.read(indices)
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (len(indices), 64, 80, 3))
    written = torch.from_numpy(shades(FRAMES)).float()
    nearest = [int((written - frame.float()).square().mean((1, 2, 3)).argmin()) for frame in frames]
    assert nearest == indices


@pytest.mark.parametrize("rate", ["30000/1001", "2997/100", "25/2", "2/5"])
def test_the_rate_is_that_of_the_file(tmp_path, decoder, rate):
    path = encode(tmp_path / "video.mp4", shades(6), rate=rate)
    video = open_video(str(path), decoder)
    assert video.frames == 6
    assert video.fps == pytest.approx(float(Fraction(rate)))


def test_frames_come_back_as_often_as_they_are_asked_for(files, decoder):
    """Upstream spreads more frames than there are over a short video."""
    video = open_video(str(files["index last.mp4"]), decoder)
    frames = video.read([3, 3, 4, 4, 4, 9])
    assert torch.equal(frames, video.read([3, 4, 9])[[0, 0, 1, 1, 1, 2]])


def test_parts_of_a_video_are_the_whole_in_order(files, decoder):
    video = open_video(str(files["index last.mp4"]), decoder)
    whole = video.read(range(0, FRAMES, 7))
    parts = [video.read([index]) for index in range(0, FRAMES, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_colours_are_red_green_blue(tmp_path, decoder):
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[..., 0] = 220
    read = open_video(str(encode(tmp_path / "red.mp4", frames)), decoder).read([0])
    assert read[..., 0].float().mean() > 200
    assert read[..., 1:].float().mean() < 30


def test_what_is_no_file_or_empty_is_not_opened(tmp_path, decoder, monkeypatch):
    monkeypatch.setattr(reading, "look_at_packets", lambda *arguments: pytest.fail("it was opened"))
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert not_opened(tmp_path / "absent.mp4", decoder) == "no such video file"
    assert not_opened(tmp_path, decoder) == "is a folder, not a video file"
    assert not_opened(empty, decoder) == "the video file is empty"


def test_a_text_file_is_not_a_readable_video(tmp_path, decoder):
    text = tmp_path / "text.mp4"
    text.write_text("This file was named by mistake.\n" * 50)
    assert file_complaint(str(text)) is None  # from outside nothing is wrong with it
    assert not_opened(text, decoder).startswith("not a readable video (")


def test_a_file_is_named_once(tmp_path, decoder):
    text = tmp_path / "text.mp4"
    text.write_text("This file was named by mistake.\n" * 50)
    assert str(text) not in not_opened(text, decoder)


def test_sound_alone_is_not_a_readable_video(tmp_path, decoder):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            output.mux(packet)
    assert not_opened(path, decoder).startswith("not a readable video (")


def test_one_frame_is_no_video(tmp_path, decoder):
    path = encode(tmp_path / "one.mp4", shades(1))
    assert not_opened(path, decoder) == "has 1 frame(s); at least 2 are needed"
    assert open_video(str(encode(tmp_path / "two.mp4", shades(2))), decoder).frames == 2


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_not_a_shorter_video(tmp_path, files, decoder, kind, share):
    """Formats that need no index at their end stay readable, as a shorter video, when they are cut off."""
    path, whole = tmp_path / kind, files[kind].read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert re.search(r"truncated.*[\d,]+ bytes are missing", not_opened(path, decoder))


@pytest.mark.parametrize("kind", ["index first.mp4", "video.mkv", "video.avi"])
def test_a_hole_in_a_file_is_said_in_seconds(tmp_path, files, decoder, kind):
    if decoder == "decord":
        pytest.skip("decord does not say what it could not decode")
    data = bytearray(files[kind].read_bytes())
    data[len(data) // 2 : len(data) * 6 // 10] = bytes(len(data) * 6 // 10 - len(data) // 2)
    path = tmp_path / kind
    path.write_bytes(data)
    damaged = open_video(str(path))
    found = one_line(lambda: damaged.read(range(damaged.frames)), path)
    match = re.match(r"is damaged from ([\d.]+) s to ([\d.]+) s", found)
    assert match, found
    start, end = map(float, match.groups())
    assert 1.5 < start < 3.0
    assert start <= end <= FRAMES / 25
    # What lies before is not lost with it.
    before = range(int(start * 25) - 24)
    assert torch.equal(open_video(str(path)).read(before), open_video(str(files[kind])).read(before))


def test_a_long_message_is_cut_to_its_first_line(files, decoder, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("[12:00:00] /src/reader.cc:12: first\n\nsecond")

    monkeypatch.setattr(reading, "look_at_packets", fail)
    path = files["index last.mp4"]
    assert not_opened(path, decoder).startswith("not a readable video (first); ")


def test_parts_are_the_frames_in_order(files, decoder, monkeypatch):
    monkeypatch.setattr(reading, "_PIXELS_AT_ONCE", 32 * 64 * 80)
    video = open_video(str(files["index last.mp4"]), decoder)
    parts = list(video.parts(range(FRAMES)))
    assert [len(part) for part in parts] == [32] * (FRAMES // 32) + [FRAMES % 32] * (FRAMES % 32 > 0)
    assert torch.equal(torch.cat(parts), video.read(range(FRAMES)))


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, files, decoder):
    path = tmp_path / "video.mp4"
    path.write_bytes(files["index last.mp4"].read_bytes())
    video = open_video(str(path), decoder)
    with open(path, "ab") as file:
        file.write(bytes(100))
    assert one_line(lambda: video.read([0, 50]), path).startswith("changed while it was read; ")
    video = open_video(str(path), decoder)
    parts = video.parts(range(FRAMES))
    next(parts)
    path.unlink()
    assert one_line(lambda: list(parts), path).startswith("vanished while it was read; ")
