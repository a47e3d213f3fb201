"""What is drawn of a dump: cells of the pictures, what is beside them, and ranks within frame sets."""

from __future__ import annotations

import numpy as np
import pytest

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.show.views import join, read_views
from tests.tools.show.conftest import COLUMNS, FRAMES, ROWS


def one(path):
    """The one view of a dump's one video."""
    (found,) = read_views(path, "name")
    (view,) = found.views
    return found, view


def test_cells_lie_as_the_grid_says(dump):
    found, view = one(dump())
    tokens = np.arange(FRAMES * ROWS * COLUMNS).reshape(FRAMES, ROWS, COLUMNS)
    assert (view.kept == (tokens % 4 == 0)).all()
    assert view.beside.tolist() == [0] * FRAMES
    assert view.best.tolist() == tokens.max((1, 2)).tolist()
    assert view.frame_set.tolist() == [0, 1] * 4
    assert view.frames_ranked() == list(range(FRAMES))[::-1]
    # Two frames of the video make one of the model's: the first of them is shown.
    assert (found.indices, found.seconds) == ([0, 4, 8, 12, 16, 20, 24, 28], [0, 2, 4, 6, 8, 10, 12, 14])
    assert (found.title, found.question) == ("videomme, document 0", "Who?")


def test_ranks_are_of_the_frame_set(dump):
    _, view = one(dump())
    for number in (0, 1):
        of_set = view.rank[view.frame_set == number].flatten()
        np.testing.assert_allclose(of_set, np.linspace(0, 1, len(of_set)), atol=1e-6)


@pytest.mark.parametrize(("marks", "family"), [(2, "internvl_hf"), (4, "somebody_elses")])
def test_marks_are_counted_and_not_drawn(dump, marks, family):
    """As many tokens before a frame's grid as behind it."""
    _, view = one(dump(marks=marks, family=family))
    a_frame, before = ROWS * COLUMNS + marks, marks // 2
    of_frames = (np.arange(FRAMES * a_frame) % 4 == 0).reshape(FRAMES, a_frame)
    inside = of_frames[:, before:-before]
    assert (view.kept.reshape(FRAMES, -1) == inside).all()
    assert (view.beside == of_frames.sum(1) - inside.sum(1)).all()
    assert view.beside.sum() > 0
    assert (view.kept_of_frames == of_frames.sum(1)).all()
    assert view.tokens == FRAMES * a_frame


def test_a_newline_is_no_part_of_the_picture(dump):
    """LLaVA-Video's: the grid's last column."""
    _, plain = one(dump())
    _, view = one(dump(family="llava_vid"))
    assert view.kept.shape == (FRAMES, ROWS, COLUMNS - 1)
    assert (view.kept == plain.kept[..., :-1]).all()
    assert (view.beside == plain.kept[..., -1].sum(1)).all()
    assert view.beside.sum() > 0
    np.testing.assert_array_equal(view.rank, plain.rank[..., :-1])


def test_without_scores_frames_are_ranked_by_what_they_kept(dump):
    kept = np.zeros(FRAMES * ROWS * COLUMNS, bool)
    kept[[13, 14, 30]] = True
    _, view = one(dump(scores=np.full(len(kept), np.nan, np.float32), kept=kept))
    assert np.isnan(view.rank).all()
    assert np.isnan(view.best).all()
    assert view.frames_ranked()[:3] == [2, 5, 0]


def test_other_frames_are_not_compared(dump):
    first = read_views(dump(), "first")
    join(first, read_views(dump("other"), "second"))
    assert [view.name for view in first[0].views] == ["first", "second"]
    with pytest.raises(FlexSelectError, match=r"first and third read other frames .8 x 2 x 3 and 8 x 2 x 2 tokens"):
        join(first, read_views(dump("newlines", family="llava_vid"), "third"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"marks": 1}, "56 visual tokens do not lie as 8 x 2 x 3"),
        ({"grids": np.array([[7, 2, 3]])}, "48 visual tokens do not lie as 7 x 2 x 3"),
        ({"grids": np.array([[8, 2, 3], [8, 2, 3]])}, "names other videos than it has tokens of"),
        ({"frame": np.repeat(np.arange(8)[::-1], 6)}, "do not lie as"),
    ],
)
def test_a_dump_that_contradicts_itself(dump, changes, says):
    path = dump(**changes)
    with pytest.raises(FlexSelectError, match=says) as caught:
        read_views(path, "name")
    assert str(path) in str(caught.value)
