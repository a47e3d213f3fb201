from pathlib import Path

import decord
import numpy as np
import numpy.typing as npt
import pytest

from lmms_flexselect.needle.videos import COLOURS, FRAMES_PER_UNIT, SHAPES, NeedleVideo, read_video, write_video


def brightest_quadrant(frame: npt.NDArray[np.uint8]) -> int:
    """The quadrant (0..3) of a frame (56, 56, 3) with the brightest pixels: noise is dimmer than any glyph."""
    peaks = frame.max(axis=-1).reshape(2, 28, 2, 28).transpose(0, 2, 1, 3).reshape(4, -1)
    return int((peaks > 200).sum(axis=1).argmax())


def test_a_video_follows_from_its_seed() -> None:
    first, again, other = (NeedleVideo.draw(seed, 12) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    np.testing.assert_array_equal(first.frames(), again.frames())
    assert (first.frames() != other.frames()).any()


def test_needles_do_not_collide() -> None:
    for seed in range(20):
        needles = NeedleVideo.draw(seed, 6).needles
        assert len({needle.colour for needle in needles}) == 6
        assert sorted(needle.unit for needle in needles) == list(range(6))
        assert all(needle.shape in SHAPES and needle.quadrant in range(4) for needle in needles)


def test_frames_come_in_equal_pairs() -> None:
    frames = NeedleVideo.draw(1, 9).frames()
    assert frames.shape == (18, 56, 56, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0::2], frames[1::2])


@pytest.mark.parametrize("units", [8, 64])
def test_a_written_video_decodes_to_what_was_drawn(tmp_path: Path, units: int) -> None:
    video = NeedleVideo.draw(3, units)
    path = tmp_path / "folder" / "needle.mp4"
    write_video(path, video.frames())
    reader = decord.VideoReader(str(path))
    assert len(reader) == units * FRAMES_PER_UNIT
    assert reader.get_avg_fps() == 2.0
    decoded = reader.get_batch(range(len(reader))).asnumpy()
    error = np.abs(decoded.astype(int) - video.frames())
    assert error.mean() < 5
    assert [file.name for file in path.parent.iterdir()] == ["needle.mp4"]
    np.testing.assert_allclose(read_video(path), decoded, atol=2)


def test_needles_are_found_in_the_decoded_video(tmp_path: Path) -> None:
    video = NeedleVideo.draw(4, 24)
    path = tmp_path / "needle.mp4"
    write_video(path, video.frames())
    reader = decord.VideoReader(str(path))
    names = list(COLOURS)
    for needle in video.needles:
        frame = reader[needle.unit * FRAMES_PER_UNIT].asnumpy()
        assert brightest_quadrant(frame) == needle.quadrant
        clean = NeedleVideo(4, 24, ()).unit_frames()[needle.unit]
        painted = np.abs(frame.astype(int) - clean).sum(-1) > 150
        colour = np.median(frame[painted], axis=0)
        nearest = np.abs(np.array(list(COLOURS.values())) - colour).sum(-1).argmin()
        assert names[nearest] == needle.colour


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_video(tmp_path / "needle.mp4", np.zeros((4, 56, 56), dtype=np.uint8))
    assert not list(tmp_path.iterdir())
