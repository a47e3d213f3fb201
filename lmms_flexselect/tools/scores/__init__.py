"""lmms-eval's results: read, compared with the paper and with a baseline, recorded and held to."""

from lmms_flexselect.tools.scores.checking import Report, check
from lmms_flexselect.tools.scores.recording import record
from lmms_flexselect.tools.scores.results import read_runs
from lmms_flexselect.tools.scores.runs import Run, Score

__all__ = ["Report", "Run", "Score", "check", "read_runs", "record"]
