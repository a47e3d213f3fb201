"""lmms-eval's results: read, compared with the paper and with a baseline, recorded and held to."""

from lmms_flexselect.scores.checking import Report, check
from lmms_flexselect.scores.recording import record
from lmms_flexselect.scores.results import read_runs
from lmms_flexselect.scores.runs import Run, Score

__all__ = ["Report", "Run", "Score", "check", "read_runs", "record"]
