"""Standard errors, paired tests and power, against lmms-eval's own numbers and against chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from lmms_eval.api.metrics import clustered_stderr, mean_stderr, paired_ttest

from lmms_flexselect.tools.scores import statistics
from lmms_flexselect.tools.scores.runs import Score
from lmms_flexselect.tools.scores.samples import Samples
from lmms_flexselect.tools.scores.statistics import Difference, by_video, questions_needed, stderr, unpaired


def samples(correct, videos=(), types=(), num_types=0):
    numbers = list(range(len(correct)))
    return Samples(
        numbers,
        [float(c) for c in correct],
        list(videos),
        types=list(types),
        num_types=num_types,
        targets=["A"] * len(numbers),
    )


def paired(ours, theirs) -> Any:
    """With a p-value, which a paired comparison has."""
    return statistics.paired(ours, theirs)


def score(*arguments, reported_stderr=None, **named):
    own = samples(*arguments, **named)
    return Score("t", "m", 100 * own.score(), reported_stderr, len(own.correct), samples=own)


def draw(generator, videos=200, questions=3, lift=0.0):
    """Two runs' answers to questions whose difficulty is their video's: the second run is better by `lift`."""
    easy = generator.beta(1, 1, (videos, 1))
    one, other = (
        (
            generator.random((videos, questions))
            < np.clip(np.where(generator.random((videos, 1)) < 0.5, easy, 0.5) + plus, 0, 1)
        )
        for plus in (0.0, lift)
    )
    return one.ravel(), other.ravel(), np.repeat(np.arange(videos), questions)


def test_standard_errors_are_lmms_evals():
    right, _, videos = draw(np.random.default_rng(0))
    assert stderr(score(right, videos)) == pytest.approx(100 * clustered_stderr(list(map(float, right)), list(videos)))
    assert stderr(score(right)) == pytest.approx(100 * mean_stderr(list(map(float, right))))
    assert stderr(score(right, videos)) > stderr(score(right))


@pytest.mark.parametrize(
    ("correct", "videos"), [([1], []), ([], []), ([1, 0, 1], ["a", "a", "a"])], ids=["one", "none", "one video"]
)
def test_too_few_to_have_an_error(correct, videos):
    own = samples(correct, videos)
    assert math.isnan(stderr(Score("t", "m", 0.0, None, len(correct), samples=own)))


def test_videos_that_even_out_have_an_error_all_the_same():
    """Each video one right and one wrong: the clustered estimate would be the root of a negative number, or of 0."""
    error = stderr(score([1, 0] * 6, [i // 2 for i in range(12)]))
    assert 0 <= error < 100


def test_the_error_of_a_mean_over_types():
    """Two of three types asked, of 4 and 2 questions; the third counts as wrong, as lmms-eval has it."""
    own = score([1, 0, 1, 1, 1, 0], types=["a"] * 4 + ["b"] * 2, num_types=3)
    assert own.points == pytest.approx(100 * (3 / 4 + 1 / 2 + 0) / 3)
    parts = mean_stderr([1, 0, 1, 1]), mean_stderr([1, 0])
    assert stderr(own) == pytest.approx(100 * math.hypot(*parts) / 3)


def test_reported_errors_stand_where_no_samples_are():
    assert stderr(Score("t", "m", 50.0, 1.5)) == 1.5
    assert math.isnan(stderr(Score("t", "m", 50.0)))


def test_one_number_a_video_whose_mean_is_the_score():
    own = samples([1, 1, 0, 1, 0], ["a", "a", "b", "b", "b"])
    assert by_video(own) == pytest.approx([2 * 2 / 5, 1 * 2 / 5])
    weighted = samples([1, 1, 0, 1, 0], ["a", "a", "b", "b", "b"], ["x", "x", "x", "y", "y"], 2)
    assert np.mean(by_video(weighted)) == pytest.approx(weighted.score()) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_paired_without_videos_is_lmms_evals_test():
    one, other, _ = draw(np.random.default_rng(1))
    test = paired_ttest(list(map(float, one)), list(map(float, other)))
    difference = paired(samples(one), samples(other))
    assert difference.points == pytest.approx(100 * test["mean_diff"])
    assert difference.stderr == pytest.approx(100 * test["se_diff"])
    assert difference.p_value == pytest.approx(test["p_value"])
    assert (difference.low, difference.high) == pytest.approx((100 * test["ci_lower"], 100 * test["ci_upper"]))


def test_paired_over_videos_has_the_clustered_error():
    one, other, videos = draw(np.random.default_rng(2))
    differences = [float(a) - float(b) for a, b in zip(one, other, strict=True)]
    difference = paired(samples(one, videos), samples(other, videos))
    assert difference.points == pytest.approx(100 * np.mean(differences))
    assert difference.stderr == pytest.approx(100 * clustered_stderr(differences, list(videos)), rel=0.01)


def test_chance_is_called_a_difference_one_time_in_twenty():
    """Where videos are hard or easy as a whole, a test over questions would cry wolf more often."""
    generator = np.random.default_rng(3)
    found = {"videos": 0, "questions": 0}
    for _ in range(1000):
        one, other, videos = draw(generator, videos=60, questions=6)
        found["videos"] += paired(samples(one, videos), samples(other, videos)).p_value < 0.05
        found["questions"] += paired(samples(one), samples(other)).p_value < 0.05
    assert found["videos"] / 1000 == pytest.approx(0.05, abs=0.02)
    assert found["questions"] > 1.5 * found["videos"]


def test_identical_answers_need_no_test():
    assert paired(samples([1], ["a"]), samples([1])) == Difference(0.0, 0.0, 0.0, 0.0, 1.0, 1)


def test_one_video_tells_nothing():
    difference = paired(samples([1, 0], ["a", "a"]), samples([1, 1]))
    assert difference.points == -50
    assert math.isnan(difference.stderr)
    assert difference.verdict(1.0) == "cannot tell"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 3, "better"), (-3, -0.1, "worse"), (-0.9, 0.9, "same"), (0, 0, "same"), (-0.9, 1.1, "cannot tell")],
)
def test_verdicts(low, high, verdict):
    assert Difference((low + high) / 2, 0.5, low, high, None, 9).verdict(1.0) == verdict


def test_two_numbers():
    difference = unpaired(60.0, 3.0, 50.0, 4.0, 100)
    assert (difference.points, difference.stderr, difference.p_value) == (10.0, 5.0, None)
    assert (difference.low, difference.high) == pytest.approx((10 - 9.8, 10 + 9.8), abs=1e-3)


def test_questions_needed_for_a_difference_show_it_four_times_in_five():
    """By drawing so many again and again."""
    generator = np.random.default_rng(4)
    one, other, videos = draw(generator, videos=300, lift=0.1)
    ours = score(other, videos)
    lift = paired(ours.samples, samples(one, videos)).points
    needed = questions_needed(lift, len(one), ours, samples(one, videos))
    assert needed is not None
    found = 0
    for _ in range(300):
        few, more, of = draw(generator, videos=round(needed / 3), lift=0.1)
        found += paired(samples(more, of), samples(few, of)).p_value < 0.05
    assert found / 300 == pytest.approx(0.8, abs=0.12)


def test_questions_needed_of_a_single_run():
    ours = score([1] * 50 + [0] * 50)
    assert questions_needed(5.0, 100, ours) == pytest.approx((2.8 / 0.05 * 0.5) ** 2, rel=0.03)
    assert questions_needed(0.0, 100, ours) is None
    assert questions_needed(5.0, 100, score([1] * 100)) is None
