"""Frame sets: every frame once, every set across the whole video."""

from __future__ import annotations

import pytest

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method.frame_sets import interleaved_frame_sets
from tests.support.oracle import deal


@pytest.mark.parametrize("at_most", [1, 7, 16, 64, 1000])
@pytest.mark.parametrize("frames", [1, 63, 64, 65, 128, 131, 512])
def test_frames_are_dealt_out(frames, at_most):
    sets = [frame_set.tolist() for frame_set in interleaved_frame_sets(frames, at_most)]
    assert sets == deal(frames, at_most)
    assert sorted(frame for frame_set in sets for frame in frame_set) == list(range(frames))
    sizes = [len(frame_set) for frame_set in sets]
    assert max(sizes) <= at_most
    assert max(sizes) - min(sizes) <= 1
    # No set is a clip: each begins within the first and ends within the last len(sets) frames.
    assert all(s[0] < len(sets) and s[-1] >= frames - len(sets) for s in sets)


def test_the_papers_numbers():
    assert [len(s) for s in interleaved_frame_sets(512)] == [64] * 8
    assert [len(s) for s in interleaved_frame_sets(65)] == [33, 32]
    assert interleaved_frame_sets(65)[1].tolist() == list(range(1, 65, 2))


@pytest.mark.parametrize(
    ("frames", "at_most", "named"), [(0, 64, "num_frames=0"), (-3, 64, "num_frames=-3"), (5, 0, "max_frames_per_set=0")]
)
def test_nothing_to_deal(frames, at_most, named):
    with pytest.raises(OptionError, match=f"^{named}: .*at least 1"):
        interleaved_frame_sets(frames, at_most)
