"""lmms-eval's results: read, compared with the paper and with a baseline, recorded and held to."""

from lmms_flexselect.scores.check import Report, check
from lmms_flexselect.scores.expectation import record
from lmms_flexselect.scores.results import Run, Score, read_runs

__all__ = ["Report", "Run", "Score", "check", "read_runs", "record"]
