"""Standard errors, paired tests and power: lmms-eval's own functions, fed with what they are to be true of.

Questions about one video are not independent, and M-Avg counts a question by how many share its type. So a run is
handed to the paired test as one number a video, such that their mean is the task's score.
Where the samples do not name the video, each question is taken for a video of its own: the standard error is then too
small, and `Samples.videos` is empty.

lmms-eval's statistics need torch to be imported; they are imported when first used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import pstdev

from lmms_flexselect.tools.scores.runs import Score
from lmms_flexselect.tools.scores.samples import Samples

_NORMAL_95 = 1.959964


@dataclass
class Difference:
    """Ours minus theirs, in points.

    Attributes
    ----------
    points
        The difference.
    stderr, low, high
        Its standard error and 95 % interval; NaN where there are too few videos to tell.
    p_value
        Of lmms-eval's paired t-test; None for a comparison of two numbers.
    n
        Questions compared.
    """

    points: float
    stderr: float
    low: float
    high: float
    p_value: float | None
    n: int

    def verdict(self, same_within: float) -> str:
        """``better`` or ``worse`` beyond chance; ``same`` if surely within so many points; else ``cannot tell``."""
        if self.low > 0:
            return "better"
        if self.high < 0:
            return "worse"
        return "same" if -same_within <= self.low and self.high <= same_within else "cannot tell"


def stderr(score: Score) -> float:
    """A score's standard error in points: from its samples, else the results file's; NaN where neither tells."""
    samples = score.samples
    if samples is None or not samples.targets:  # recorded answers do not know their videos
        return math.nan if score.reported_stderr is None else score.reported_stderr
    return 100 * (_of_types(samples) if samples.types else _of_videos(samples.correct, samples.videos))


def _of_videos(correct: Sequence[float], videos: Sequence[Hashable]) -> float:
    from lmms_eval.api.metrics import clustered_stderr, mean_stderr

    if len(correct) < 2 or len(set(videos)) == 1:
        return math.nan
    if videos:
        try:
            return clustered_stderr(list(correct), list(videos))
        except ValueError:  # videos whose scores hardly differ: its estimate of the variance is below zero
            pass
    return mean_stderr(list(correct))


def _of_types(samples: Samples) -> float:
    """Of a mean over question types: the root of the sum of their variances, over their number."""
    positions = defaultdict(list)
    for position, name in enumerate(samples.types):
        positions[name].append(position)
    parts = [
        _of_videos([samples.correct[p] for p in own], [samples.videos[p] for p in own] if samples.videos else [])
        for own in positions.values()
    ]
    return math.sqrt(sum(part**2 for part in parts)) / samples.num_types


def by_video(samples: Samples) -> list[float]:
    """One number a video, 0..1 on average, in the order of first questions; their mean is the task's score."""
    of_video: dict[Hashable, float] = defaultdict(float)
    videos = samples.videos or samples.documents
    for video, weight, correct in zip(videos, samples.weights(), samples.correct, strict=True):
        of_video[video] += weight * correct
    return [value * len(of_video) / len(samples.correct) for value in of_video.values()]


def paired(ours: Samples, theirs: Samples) -> Difference:
    """lmms-eval's paired t-test over videos; both have answered the same documents, and `ours` knows the videos."""
    n = len(ours.correct)
    if ours.correct == theirs.correct:
        return Difference(0.0, 0.0, 0.0, 0.0, 1.0, n)
    from lmms_eval.api.metrics import paired_ttest

    mine, other = by_video(ours), by_video(_as_known(theirs, ours))
    test = paired_ttest(mine, other)
    points = 100 * (ours.score() - _as_known(theirs, ours).score())
    se, low, high = (100 * float(test[name]) for name in ("se_diff", "ci_lower", "ci_upper"))
    return Difference(points, se, low, high, float(test["p_value"]), n)


def _as_known(theirs: Samples, ours: Samples) -> Samples:
    """Their answers with what our samples tell of the documents: an expectation file holds answers alone."""
    return replace(ours, correct=theirs.correct)


def unpaired(ours: float, our_stderr: float, theirs: float, their_stderr: float, n: int) -> Difference:
    """Of two numbers, by their standard errors; `their_stderr` is 0 for a number held to be exact."""
    points, se = ours - theirs, math.hypot(our_stderr, their_stderr)
    return Difference(points, se, points - _NORMAL_95 * se, points + _NORMAL_95 * se, None, n)


def questions_needed(tolerance: float, n: int, ours: Score, theirs: Samples | None = None) -> int | None:
    """How many questions would show a difference of `tolerance` points four times in five: lmms-eval's power analysis.

    With `theirs` for a paired comparison, else for one with a fixed number. None where that cannot be known.
    """
    from lmms_eval.api.metrics import power_analysis

    if tolerance <= 0:
        return None
    if theirs is not None and ours.samples is not None:
        differences = [
            a - b for a, b in zip(by_video(ours.samples), by_video(_as_known(theirs, ours.samples)), strict=True)
        ]
        spread, units = pstdev(differences), len(differences)
    else:
        spread, units = stderr(ours) / 100 * math.sqrt(n), n
    if not spread > 0:
        return None
    # One side without spread, no correlation: the spread of the difference is known, not to be put together.
    needed = power_analysis(tolerance / 100, std_a=spread, std_b=0.0, correlation=0.0)["min_n"]
    return math.ceil(needed * n / units)
