"""Reading videos: the frames that upstream reads, and one line for every file that cannot be read."""

from __future__ import annotations

import re
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from qwen_vl_utils import vision_process

from lmms_flexselect.errors import VideoError
from lmms_flexselect.families import grid_frames
from lmms_flexselect.families.grid_frames import FrameSampling, read_video
from lmms_flexselect.needle.videos import write_video
from tests.support.changing_frames import changing_frames

# frames, height, width, frames per second; sizes that need rounding to whole patches, lengths odd and even
VIDEOS = {
    "short": (9, 60, 90, 4.0),
    "long": (131, 84, 112, 12.5),
    "wide": (40, 56, 210, 25.0),
    "tiny": (2, 30, 30, 1.0),
}
PIXELS = {
    "default": {},
    "small": {"min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28},
    "large": {"min_pixels": 64 * 28 * 28, "max_pixels": 100 * 28 * 28},
}


@pytest.fixture(autouse=True)
def decord_reads(monkeypatch):
    """qwen-vl-utils takes whatever decoder it finds, once a process."""
    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "decord")
    vision_process.get_video_reader_backend.cache_clear()
    yield
    vision_process.get_video_reader_backend.cache_clear()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, (count, height, width, fps) in VIDEOS.items():
        write_video(folder / f"{name}.mp4", changing_frames(count, height, width), fps)
    return {name: str(folder / f"{name}.mp4") for name in VIDEOS}


def assert_read_as_upstream(element, sampling, **upstream):
    """Bit for bit what qwen-vl-utils gives for the same element, and the same metadata."""
    ours = read_video(element, sampling)
    frames, metadata = vision_process.fetch_video({**element, **upstream}, return_video_metadata=True)
    assert metadata["video_backend"] == "decord", "upstream fell back to another reader"
    assert ours.frames.dtype == frames.dtype == torch.float32
    assert torch.equal(ours.frames, frames)
    assert ours.metadata == {**metadata, "video_backend": "pyav"}
    return ours


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("frames", [2, 7, 16, 1000])
@pytest.mark.parametrize("name", VIDEOS)
def test_frames_spread_over_the_video(videos, name, frames, pixels):
    total = VIDEOS[name][0]
    # The chat class asks for as many frames as there are, at most, and for an even number.
    count = max(2, min(frames, total) // 2 * 2)
    read = assert_read_as_upstream({"video": videos[name], **PIXELS[pixels]}, FrameSampling(frames), nframes=count)
    assert len(read.frames) == count
    assert read.metadata["frames_indices"][0] == 0
    assert read.metadata["frames_indices"][-1] == total - 1


@pytest.mark.parametrize("most", [4, 10, 768])
@pytest.mark.parametrize("fps", [0.5, 2.0, 8])
@pytest.mark.parametrize("name", VIDEOS)
def test_frames_by_rate_with_an_upper_bound(videos, name, fps, most):
    element = {"video": videos[name], **PIXELS["small"]}
    read = assert_read_as_upstream(element, FrameSampling(most, fps), fps=fps, max_frames=most)
    assert len(read.frames) <= most


@pytest.mark.parametrize(("most", "count"), [(1024, 20), (20, 20), (16, 16), (3, 2), (2, 2)])
def test_the_smaller_of_rate_and_bound(videos, most, count):
    """131 frames at 12.5 a second are 10.48 seconds: 20 frames at 2 a second, rounded down to whole pairs."""
    read = read_video({"video": videos["long"], **PIXELS["small"]}, FrameSampling(most, 2.0))
    assert len(read.frames) == count


@pytest.mark.parametrize(("start", "end"), [(2.0, 5.0), (None, 4.5), (6.1, None)])
@pytest.mark.parametrize("fps", [None, 2.0])
def test_a_part_of_a_video(videos, start, end, fps):
    bounds = {"video_start": start, "video_end": end}
    element = {"video": videos["long"], **PIXELS["small"], **{k: v for k, v in bounds.items() if v is not None}}
    upstream = {"nframes": 8} if fps is None else {"fps": fps, "max_frames": 8}
    assert_read_as_upstream(element, FrameSampling(8, fps), **upstream)


@pytest.mark.parametrize("most", [2, 5, 8, 500])
@pytest.mark.parametrize("name", VIDEOS)
def test_upstreams_simple_rule(videos, name, most):
    """The simple class samples at 2 fps, then takes every so many of those, by linspace over their number."""
    element = {"video": videos[name], **PIXELS["small"]}
    frames, metadata = vision_process.fetch_video(element, return_video_metadata=True)
    stay = np.unique(np.linspace(0, len(frames) - 1, most, dtype=int))
    ours = read_video(element, FrameSampling(most, thin_from_fps=2.0))
    assert ours.metadata["frames_indices"] == [metadata["frames_indices"][i] for i in stay]
    assert torch.equal(ours.frames, frames[torch.from_numpy(stay)])


# Context length and lower pixel bound; frames are 84 x 112, 12 tokens. An even share of the context is 9 tokens a pair
# in the first case, and less than the lower bound, which then has 5 % of play, in the second.
@pytest.mark.parametrize(("context", "lowest", "size"), [(100, 4 * 784, (56, 84)), (10, 4100, (56, 56))])
@pytest.mark.parametrize("simple", [False, True])
def test_frames_of_a_long_video_share_the_context(videos, monkeypatch, context, lowest, size, simple):
    """Beyond 300 frames at the real context length; here the context is made short instead."""
    for module in (vision_process, grid_frames):
        monkeypatch.setattr(module, "MODEL_SEQ_LEN", context)
    element = {"video": videos["long"], "min_pixels": lowest}
    # 20 frames are sampled either way, and share by that number also where they are thinned out afterwards.
    sampling = FrameSampling(5, thin_from_fps=2.0) if simple else FrameSampling(20, 2.0)
    frames = vision_process.fetch_video({**element, "fps": 2.0})
    ours = read_video(element, sampling).frames
    assert tuple(frames.shape[-2:]) == size
    assert torch.equal(ours, frames[np.linspace(0, 19, 5, dtype=int)] if simple else frames)


def test_a_files_address_is_a_path(videos):
    plain = read_video({"video": videos["short"]}, FrameSampling(4))
    assert torch.equal(read_video({"video": f"file://{videos['short']}"}, FrameSampling(4)).frames, plain.frames)


def encode(path, frames, **options):
    """H.264 as a phone or a site writes it: B frames, long distances between key frames."""
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "12", "g": "50", "bf": "3"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """One video with its index at the end of the file, and with it in front."""
    folder, frames = tmp_path_factory.mktemp("encoded"), changing_frames(120, 84, 112)
    last, first = encode(folder / "last.mp4", frames), encode(folder / "first.mp4", frames, movflags="faststart")
    assert last.index(b"moov") > last.index(b"mdat")
    assert first.index(b"moov") < first.index(b"mdat")
    return {"index last": last, "index first": first}


@pytest.mark.parametrize("layout", ["index last", "index first"])
def test_frames_are_those_asked_for(tmp_path, encoded, layout):
    """Seeking between key frames lands on the frame a reader finds that decodes everything from the start."""
    path = tmp_path / "whole.mp4"
    path.write_bytes(encoded[layout])
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    read = read_video({"video": str(path), "min_pixels": 84 * 112, "max_pixels": 84 * 112}, FrameSampling(16))
    for frame, index in zip(read.frames, read.metadata["frames_indices"], strict=True):
        # Two converters from YUV round differently; another frame would differ by tens.
        assert np.abs(frame.permute(1, 2, 0).numpy() - every[index]).mean() < 2


def one_line(path, sampling=FrameSampling(16), **element):  # noqa: B008
    with pytest.raises(VideoError) as caught:
        read_video({"video": str(path), **element}, sampling)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("layout", ["index last", "index first"])
def test_a_truncated_file_is_not_a_shorter_video(tmp_path, encoded, layout, part):
    path = tmp_path / "cut.mp4"
    path.write_bytes(encoded[layout][: int(len(encoded[layout]) * part)])
    for sampling in (FrameSampling(2), FrameSampling(120), FrameSampling(16, 2.0), FrameSampling(4, thin_from_fps=2.0)):
        one_line(path, sampling)


def test_a_hole_in_a_file_is_noticed(tmp_path, encoded):
    data = bytearray(encoded["index first"])
    data[len(data) // 2 : len(data) * 6 // 10] = bytes(len(data) * 6 // 10 - len(data) // 2)
    path = tmp_path / "hole.mp4"
    path.write_bytes(data)
    assert re.match(r"is damaged from 2\.\d s to \d\.\d s; ", one_line(path, FrameSampling(120)))


def test_files_that_are_no_videos(tmp_path):
    assert one_line(tmp_path / "absent.mp4") == "no such video file"
    assert one_line(tmp_path) == "is a folder, not a video file"
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("This file was named by mistake.\n" * 50)
    assert one_line(empty) == "the video file is empty"
    assert one_line(text).startswith("not a readable video (")


def test_one_frame_is_no_video(tmp_path):
    path = tmp_path / "one.mp4"
    write_video(path, changing_frames(1, 56, 56))
    assert one_line(path) == "has 1 frame(s); at least 2 are needed"


@pytest.mark.parametrize(("start", "end"), [(5.0, 2.0), (60.0, 70.0), (1.0, 1.01)])
def test_a_part_that_is_not_there(videos, start, end):
    assert "Invalid time range" in one_line(videos["long"], video_start=start, video_end=end)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_cut_file_that_still_decodes_is_refused(tmp_path, container, codec, share):
    """These formats need no index at their end, so a reader may take what is left for the whole video."""
    path = tmp_path / "video"
    noise = np.random.default_rng(0).integers(0, 255, (120, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in noise:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    whole = path.read_bytes()
    assert len(read_video({"video": str(path)}, FrameSampling(8)).frames) == 8
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(VideoError, match=r"video: is truncated: [\d,]+ bytes are missing"):
        read_video({"video": str(path)}, FrameSampling(8))


def test_a_frame_that_cannot_be_resized_names_its_file(tmp_path):
    path = tmp_path / "thin.mp4"
    write_video(path, np.zeros((8, 4, 1000, 3), np.uint8), 4.0)
    with pytest.raises(VideoError, match=r"thin\.mp4: .*aspect ratio"):
        read_video({"video": str(path)}, FrameSampling(4))
