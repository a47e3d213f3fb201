"""One video's questions meet, and nothing else moves more than it must."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lmms_eval import utils

from lmms_flexselect.models.requests import OneBatch, in_batches

SHORT, LONG = {"max_new_tokens": 1}, {"max_new_tokens": 16}


def requests(*rows):
    """Requests of a simple model: settings and task of each."""
    arguments = [(f"question {n}", settings, len, n, task, "test") for n, (settings, task) in enumerate(rows)]
    return [SimpleNamespace(args=of_one) for of_one in arguments]


@pytest.mark.parametrize(
    ("videos", "order"),
    [
        ("abab", [0, 2, 1, 3]),
        ("aabb", [0, 1, 2, 3]),
        ("bacabc", [0, 4, 1, 3, 2, 5]),
        ("", []),
    ],
)
def test_videos_come_by_their_first_question(videos, order):
    given = requests(*[(SHORT, "task")] * len(videos))
    assert in_batches(given, [(video,) for video in videos]) == [[number] for number in order]
    in_twos = in_batches(given, [(video,) for video in videos], batch_size=2)
    assert in_twos == [order[start : start + 2] for start in range(0, len(order), 2)]


def test_questions_about_nothing_or_two_videos_have_their_place_too():
    videos = [("a",), (), ("a", "b"), ("a",), (), ("a", "b")]
    assert in_batches(requests(*[(SHORT, "task")] * 6), videos, 6) == [[0, 3, 1, 4, 2, 5]]


def test_what_cannot_be_answered_at_once_is_kept_apart_only_where_several_are():
    given = requests((SHORT, "one"), (LONG, "one"), (dict(SHORT), "one"), (SHORT, "two"), (SHORT, "one"))
    videos = [("a",), ("a",), ("b",), ("a",), ("a",)]
    assert in_batches(given, videos) == [[0], [1], [3], [4], [2]]
    assert in_batches(given, videos, batch_size=2) == [[0, 4], [2], [1], [3]]


def test_a_batch_takes_the_place_of_lmms_evals_collator():
    """That takes requests apart by their settings and sorts them, so that nobody knows whose turn it is."""
    given = [request.args for request in requests((SHORT, "task"), (LONG, "task"), (SHORT, "task"))]

    def batches(collator):
        made = collator(given, lambda x: (x[0], x[0]), group_fn=lambda x: x[1], grouping=True)
        got = [list(batch) for batch in made.get_batched(n=2, batch_fn=None)]
        return got, made.get_original([arguments[3] for batch in got for arguments in batch])

    assert batches(utils.Collator) == ([[given[0], given[2]], [given[1]]], [0, 1, 2])
    assert batches(OneBatch) == ([given], [0, 1, 2])
