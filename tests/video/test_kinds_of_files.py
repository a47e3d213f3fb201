"""Of every kind of file each family gets the frames that ffmpeg shows, however densely it asks for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmms_flexselect.errors import VideoError
from lmms_flexselect.families.grid_frames import FrameSampling, read_video_bytes
from lmms_flexselect.families.internvl.media import read_small
from lmms_flexselect.families.internvl.processor import FrameSegments, OriginalProcessor
from lmms_flexselect.families.llava_video.frames import read_llava_video
from lmms_flexselect.video.reading import Backend, check_video, open_video
from tests.support.numbered_videos import KINDS, make, number_of, shown

SAMPLINGS = ("all", "2 a second", "32 spread")
# What decord is let read.
WITH_DECORD = ("plain.mp4", "vp9.webm", "long_sound.mkv", "turned.mp4", "slow.mp4")
VARIABLE = ("variable.mkv", "variable.mp4")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make(folder)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def shown_by_ffmpeg(files):
    return {kind: shown(path) for kind, path in files.items()}


def qwen(path, sampling):
    rule = {"all": FrameSampling(1000), "2 a second": FrameSampling(1000, 2.0), "32 spread": FrameSampling(32)}
    seen = read_video_bytes({"video": path, "min_pixels": 112 * 112, "max_pixels": 112 * 112}, rule[sampling])
    return seen.metadata["frames_indices"], seen.frames.permute(0, 2, 3, 1)


def llava(path, sampling):
    rule = {"all": (1000, 1000, False), "2 a second": (1000, 2, False), "32 spread": (32, 1, True)}
    clip = read_llava_video(path, *rule[sampling], size=112)
    return clip.indices, clip.frames


def internvl(path, sampling):
    rule = {"all": FrameSegments(1000), "2 a second": FrameSegments(None, 2.0), "32 spread": FrameSegments(32)}
    read = read_small(path, rule[sampling], OriginalProcessor(None, 112))
    return read.metadata["frames_indices"], read.frames


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("read", [qwen, llava, internvl])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_that_ffmpeg_shows(files, shown_by_ffmpeg, kind, read, sampling):
    every = shown_by_ffmpeg[kind]
    assert None not in every or kind == "turned.mp4"
    frames, pixels = read(str(files[kind]), sampling)
    if kind == "turned.mp4":  # whose numbers are read upright again
        every, pixels = list(range(len(every))), torch.rot90(pixels, 1, (1, 2))
    assert [number_of(frame.numpy()) for frame in pixels] == [every[frame] for frame in frames]
    if sampling == "all" and (read is not qwen or len(every) % 2 == 0):  # Qwen2.5-VL reads whole pairs
        assert frames == list(range(len(every)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_without_decoding_lets_every_kind_pass(files, kind):
    frames, fps = check_video(str(files[kind]))
    video = open_video(str(files[kind]))
    assert frames == pytest.approx(video.frames, abs=2)
    assert fps == pytest.approx(video.fps, rel=0.1)


@pytest.mark.parametrize("kind", VARIABLE)
def test_of_a_variable_rate_the_frame_on_screen_is_read_and_its_second_told(files, kind):
    clip = read_llava_video(str(files[kind]), 8, force_sample=True, size=112)
    # Frame n was written for n / 25 s, and is on screen until the next one that was kept.
    numbers = [number_of(frame.numpy()) for frame in clip.frames]
    assert clip.seconds == pytest.approx([number / 25 for number in numbers if number is not None], abs=0.002)
    kept = [number for number in shown(files[kind]) if number is not None]
    instants = np.linspace(0, len(kept) - 1, 8, dtype=int) / clip.fps
    assert numbers == [max(number for number in kept if number / 25 <= instant + 0.002) for instant in instants]


def test_below_one_frame_a_second_the_true_seconds_are_told(files):
    clip = read_llava_video(str(files["slow.mp4"]), size=112)
    assert clip.seconds == [5.0 * number for number in range(12)]
    seen = read_video_bytes({"video": str(files["slow.mp4"])}, FrameSampling(100, 2.0))
    assert (seen.metadata["fps"], seen.metadata["frames_indices"]) == (0.2, list(range(12)))


@pytest.mark.parametrize("kind", KINDS)
def test_decord_reads_the_same_frames_or_says_why_it_would_not(files, kind):
    path = str(files[kind])

    def read(decoder):
        return read_llava_video(path, 32, force_sample=True, backend=Backend(decoder), size=112).frames

    if kind in WITH_DECORD:
        assert torch.equal(read("decord"), read("pyav"))
    else:
        with pytest.raises(VideoError, match=r"decord (would|cannot|finds).*video_decode_backend=pyav"):
            read("decord")
