"""The frames of a question: those that upstream's own code reads, as bytes of the tower's size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.families.llava_video import frames as llava_video_frames
from lmms_flexselect.families.llava_video.frames import read_pictures, sample_frames
from lmms_flexselect.families.llava_video.llava_package import upstream_llava_vid
from lmms_flexselect.families.llava_video.visuals import LlavaFrames, VisualSource, read_frames
from lmms_flexselect.families.pixels import resize_frames
from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.video import reading
from lmms_flexselect.video.reading import Backend
from tests.support.changing_frames import changing_frames

SIZE = 28
# Frames and frames a second: rates with halves to be rounded, lengths below and above every bound.
VIDEOS: dict[str, tuple[int, float]] = {
    "two": (2, 2.0),
    "half": (131, 12.5),
    "film": (95, 29.97),
    "even": (76, 25.0),
    "slow": (48, 1.5),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, (count, fps) in VIDEOS.items():
        write_video(folder / f"{name}.mp4", changing_frames(count), fps)
    return {name: str(folder / f"{name}.mp4") for name in VIDEOS}


@pytest.fixture(scope="module")
def load_video():
    """Upstream's own method; it needs nothing of its object."""
    return lambda *arguments: upstream_llava_vid().LlavaVid.load_video(None, *arguments)


def squares(frames):
    images = (Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for frame in frames)
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def read(visuals, max_frames=16, frames_per_second=1, force_sample=False, decoder="pyav"):
    source = VisualSource.of(visuals, "What?")
    return read_frames(source, max_frames, frames_per_second, force_sample, Backend(decoder), SIZE)


def indices_of(frames):
    (video,) = frames.row.videos
    return video["frames_indices"]


@pytest.mark.parametrize("force_sample", [False, True])
@pytest.mark.parametrize("frames_per_second", [1, 2])
@pytest.mark.parametrize("max_frames", [1, 5, 1000])
@pytest.mark.parametrize("name", VIDEOS)
def test_frames_times_and_length_are_upstreams(videos, load_video, name, max_frames, frames_per_second, force_sample):
    if force_sample and max_frames == 1000:
        max_frames = 2 * VIDEOS[name][0]  # more than there are: upstream takes some of them twice
    arguments = (max_frames, frames_per_second, force_sample)
    wanted, wanted_times, wanted_length = load_video(videos[name], *arguments)
    frames, times, length = read([videos[name]], *arguments)
    assert (times, length) == (wanted_times, wanted_length)
    assert frames.frames.dtype == torch.uint8
    assert torch.equal(frames.frames, squares(wanted))
    assert len(frames) == len(indices_of(frames)) == len(times.split(","))
    if force_sample:
        assert len(frames) == max_frames


@pytest.mark.parametrize(
    ("fps", "frames_per_second", "step"), [(12.5, 1, 12), (12.5, 2, 6), (25.0, 2, 12), (29.97, 1, 30), (1.5, 1, 2)]
)
def test_the_step_is_rounded_to_even_halves_as_python_does(fps, frames_per_second, step):
    """Upstream takes one frame every `round(rate / video_fps)`."""
    indices, seconds = sample_frames(100, fps, 1000, frames_per_second, False)
    assert indices == list(range(0, 100, step))
    assert seconds == list(range(len(indices)))


def test_frames_spread_over_the_video_are_at_their_true_seconds():
    indices, seconds = sample_frames(101, 12.5, 5, 1, False)
    assert indices == [0, 25, 50, 75, 100]
    assert seconds == [0.0, 2.0, 4.0, 6.0, 8.0]
    # As many as may be are no reason to spread them, unless that is asked for.
    assert sample_frames(49, 12.0, 5, 1, False)[0] == [0, 12, 24, 36, 48]
    assert sample_frames(50, 12.0, 5, 1, False)[0] == [0, 12, 24, 36, 48]
    assert sample_frames(50, 12.0, 5, 1, True)[0] == [0, 12, 24, 36, 49]
    assert sample_frames(61, 12.0, 5, 1, False)[0] == [0, 15, 30, 45, 60]


@pytest.mark.parametrize(("fps", "frames_per_second"), [(0.4, 1), (0.5, 1), (1.0, 2), (8.0, 24)])
def test_of_a_video_with_fewer_frames_than_asked_for_each_is_read(tmp_path, load_video, fps, frames_per_second):
    path = str(tmp_path / "slow.mp4")
    write_video(path, changing_frames(7), fps)
    with pytest.raises(ValueError, match="must not be zero"):
        load_video(path, 16, frames_per_second)
    frames, times, length = read([path], frames_per_second=frames_per_second)
    assert indices_of(frames) == list(range(7))
    assert times.startswith(f"0.00s,{1 / fps:.2f}s,")
    assert length == pytest.approx(7 / fps)


@pytest.mark.parametrize("name", VIDEOS)
def test_the_other_decoder_reads_the_same_frames(videos, name):
    for max_frames in (5, 1000):
        frames, *rest = read([videos[name]], max_frames)
        others, *others_rest = read([videos[name]], max_frames, decoder="decord")
        assert indices_of(others) == indices_of(frames)
        assert others_rest == rest
        assert torch.equal(others.frames, frames.frames)
        assert others.row.videos[0]["video_backend"] == "decord"


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize(("container", "codec"), [("webm", "libvpx"), ("matroska", "libx264")])
def test_containers_that_do_not_store_their_length(tmp_path, decoder, container, codec):
    path = tmp_path / "video"
    written = changing_frames(40)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(10), options={"crf": "4", "b": "4M"})
        stream.height, stream.width = written.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in written:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    frames, times, length = read([str(path)], decoder=decoder)
    assert indices_of(frames) == [0, 10, 20, 30]
    assert (times, length) == ("0.00s,1.00s,2.00s,3.00s", 4.0)
    distances = [(squares(written).float() - frame.float()).abs().mean((1, 2, 3)) for frame in frames.frames]
    assert [int(distance.argmin()) for distance in distances] == [0, 10, 20, 30]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_long_videos_are_decoded_in_parts(videos, monkeypatch, decoder):
    """As many frames as are resized together; all of an hour's 1080p frames would take 20 GB."""
    whole, _, _ = read([videos["half"]], 1000, 12, decoder=decoder)
    parts = []

    def count(part, size, own=resize_frames):
        parts.append(len(part))
        return own(part, size)

    monkeypatch.setattr(llava_video_frames, "resize_frames", count)
    monkeypatch.setattr(reading, "_PIXELS_AT_ONCE", 32 * int(np.prod(changing_frames(1).shape[1:3])))
    frames, _, _ = read([videos["half"]], 1000, 12, decoder=decoder)
    assert parts == [32, 32, 32, 32, 3]
    assert torch.equal(frames.frames, whole.frames)


def test_the_record_tells_what_was_read(videos):
    frames, _, _ = read([videos["even"]], max_frames=3)
    assert frames.row.text == "What?"
    assert frames.row.error is None
    assert frames.failure is None
    (video,) = frames.row.videos
    assert video == {
        "path": videos["even"],
        "fps": 25.0,
        "frames_indices": [0, 37, 75],
        "video_backend": "pyav",
    }


# Pictures instead of a video


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of different size and mode, written in another order than their names have."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (3, 0, 6, 1, 5, 2, 4):
        picture = Image.new("RGB", (30 + number, 40), (30 * number, 0, 0))
        picture.convert("P" if number == 2 else "RGB").save(folder / f"frame_{number:03d}.png")
    return folder


def shades(frames):
    """Which pictures were read."""
    return [round(int(frame[5, 5, 0]) / 30) for frame in frames.frames]


@pytest.mark.parametrize("decoder", ["decord", "pyav", "image"])
@pytest.mark.parametrize("of_paths", [False, True], ids=["folder", "paths"])
def test_pictures_are_frames_at_three_a_second(folder, decoder, of_paths):
    visuals = sorted(str(path) for path in folder.iterdir()) if of_paths else [str(folder)]
    frames, times, length = read(visuals, 16, decoder=decoder)
    assert shades(frames) == indices_of(frames) == [0, 1, 2, 3, 4, 5, 6]
    assert tuple(frames.frames.shape) == (7, SIZE, SIZE, 3)
    assert times == "0.00s,0.33s,0.67s,1.00s,1.33s,1.67s,2.00s"
    assert length == pytest.approx(7 / 3)
    assert frames.row.videos[0]["video_backend"] == "image"


@pytest.mark.parametrize("of_paths", [False, True], ids=["folder", "paths"])
def test_too_many_pictures_are_spread(folder, of_paths):
    visuals = sorted(str(path) for path in folder.iterdir()) if of_paths else [str(folder)]
    frames, times, length = read(visuals, 3)
    assert shades(frames) == indices_of(frames) == [0, 3, 6]
    assert times == "0.00s,1.00s,2.00s"
    assert length == pytest.approx(7 / 3)
    assert shades(read(visuals, 1)[0]) == [0]


def test_a_picture_is_resized_as_a_frame_is(folder):
    frames, _, _ = read([str(folder)], 1)
    with Image.open(folder / "frame_000.png") as picture:
        assert torch.equal(frames.frames, squares([np.array(picture)]))


@pytest.mark.parametrize("count", [1, 5])
def test_images_in_memory_are_frames_too(count):
    """As MVBench's and SEED-Bench's frames come."""
    images = [Image.new("RGB", (30 + number, 40), (30 * number, 0, 0)) for number in range(count)]
    frames, _, length = read(images, 3)
    assert shades(frames) == ([0, 2, 4] if count == 5 else [0])
    assert length == pytest.approx(count / 3)
    assert frames.row.videos[0]["path"] == "images"


def test_a_folders_path_in_the_record_is_its_path(folder):
    assert read([str(folder)])[0].row.videos[0]["path"] == str(folder)


def test_hidden_files_are_no_frames(folder):
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert shades(read([str(folder)])[0]) == [0, 1, 2, 3, 4, 5, 6]


def test_other_folders_in_a_folder_are_no_frames(folder):
    (folder / "a folder").mkdir()
    assert shades(read([str(folder)])[0]) == [0, 1, 2, 3, 4, 5, 6]


# What cannot be read


def one_line(visuals, **arguments):
    with pytest.raises(VideoError) as caught:
        read(visuals, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_empty_folder(tmp_path):
    assert one_line([str(tmp_path)]) == f"{tmp_path}: the folder of frames is empty"
    (tmp_path / "a folder").mkdir()
    assert one_line([str(tmp_path)]) == f"{tmp_path}: the folder of frames is empty"


@pytest.mark.parametrize("of_paths", [False, True], ids=["folder", "paths"])
@pytest.mark.parametrize("content", [b"no picture", b""], ids=["text", "empty"])
def test_an_unreadable_picture_is_named(folder, content, of_paths):
    paths = sorted(str(path) for path in folder.iterdir())
    (folder / "frame_004.png").write_bytes(content)
    text = one_line(paths if of_paths else [str(folder)])
    assert text.startswith(f"{folder / 'frame_004.png'}: not a readable image (")


@pytest.fixture
def cut_picture(folder):
    path = folder / "frame_004.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize("filled_up", [False, True], ids=["by default", "as lmms-eval sets PIL"])
def test_a_cut_picture_is_refused_by_name(monkeypatch, folder, cut_picture, filled_up):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled_up)
    assert one_line([str(folder)]).startswith(f"{cut_picture}: not a readable image (")


def test_a_cut_image_in_memory_is_a_bad_picture(monkeypatch, cut_picture):
    """Data sets decode their images when they are first looked at."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    with pytest.raises(VideoError, match="not a readable image"):
        read_pictures([Image.open(cut_picture)])


def test_a_picture_that_is_not_there_is_named(folder):
    paths = [str(folder / "frame_000.png"), str(folder / "frame_777.png")]
    assert one_line(paths).startswith(f"{folder / 'frame_777.png'}: not a readable image (")


def test_an_unreadable_picture_is_named_once(folder):
    (folder / "frame_004.png").write_text("no picture")
    assert one_line([str(folder)]).count("frame_004.png") == 1


def test_several_videos_and_nothing_are_refused(videos, folder):
    two = [videos["even"], videos["slow"]]
    with pytest.raises(FlexSelectError, match=r"^llava_vid reads one video a question; this one has 2: .*even\.mp4"):
        VisualSource.of(two, "What?")
    with pytest.raises(FlexSelectError, match="reads one video a question; this one has 2"):
        VisualSource.of([str(folder), str(folder)], "What?")
    with pytest.raises(FlexSelectError, match=r"one video a question; this one has 2: .*even\.mp4"):
        VisualSource.of([videos["even"], Image.new("RGB", (8, 8))], "What?")
    with pytest.raises(FlexSelectError, match=r"^llava_vid answers questions about a video, .* with: 'Who is it\?'$"):
        VisualSource.of([], "Who is it?")


def test_a_video_where_frames_are_asked_for(videos):
    assert one_line([videos["even"]], decoder="image") == (
        f"{videos['even']}: with video_decode_backend=image a folder of frames is read, and this is none"
    )


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_bad_file_is_named(tmp_path, decoder):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"text" * 99)
    assert one_line([str(path)], decoder=decoder).startswith(f"{path}: not a readable video (")
    path.write_bytes(b"")
    assert one_line([str(path)], decoder=decoder) == f"{path}: the video file is empty"
    assert one_line([str(path) + "x"], decoder=decoder) == f"{path}x: no such video file"


def test_a_programming_error_is_not_taken_for_a_bad_file(videos, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(llava_video_frames, "resize_frames", fail)
    with pytest.raises(RuntimeError, match="ours"):
        read([videos["even"]])


# What upstream's loop does with them


def test_a_source_is_one_string_to_upstream(videos, folder):
    of_video = VisualSource.of([videos["even"]], "What?")
    assert of_video == videos["even"]
    assert (of_video.visuals, of_video.question) == ([videos["even"]], "What?")
    # Upstream would list a folder by itself, in any order, and take it for many visuals.
    of_folder = VisualSource.of([str(folder)], "What?")
    assert of_folder == f"{folder}/*"
    assert of_folder.visuals == [str(folder)]
    pictures = [str(folder / "frame_001.png"), str(folder / "frame_000.png")]
    assert VisualSource.of(pictures, "What?") == pictures[0]
    assert VisualSource.of([Image.new("RGB", (8, 8))] * 2, "What?") == "images"


def test_frames_stay_bytes_until_they_are_asked_for():
    frames = LlavaFrames(torch.zeros(3, 4, 4, 3, dtype=torch.uint8))
    assert frames.to("cuda").half().bfloat16() is frames
    assert len(frames) == 3
    assert len(LlavaFrames(failure=VideoError("a.mp4: bad"))) == 0


def test_a_path_object_is_a_path(videos):
    assert torch.equal(read([Path(videos["even"])])[0].frames, read([videos["even"]])[0].frames)
