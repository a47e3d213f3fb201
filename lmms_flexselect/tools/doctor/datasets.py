"""What of a config's data sets is on this machine: where the doctor asks `lmms_flexselect.tools.preparation`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmms_flexselect.needle import TASK_PREFIX
from lmms_flexselect.runtime.hf_home import hf_home


@dataclass(frozen=True)
class DataSet:
    """What some tasks ask about.

    Attributes
    ----------
    title
        Of the benchmark.
    folder
        Where lmms-eval looks for its videos.
    lacking
        One line for each thing that is not there.
    gigabytes
        To download if it is not.
    gated
        Whether the hub gives it only to those who accepted its terms.
    command
        What prepares it.
    """

    title: str
    folder: Path
    lacking: tuple[str, ...]
    gigabytes: float
    gated: bool
    command: str


def data_sets(tasks: Iterable[str]) -> tuple[list[DataSet], list[str]]:
    """The data sets of some tasks, and the tasks whose data sets are not known here."""
    from lmms_flexselect.tools.preparation.benchmarks import BENCHMARKS
    from lmms_flexselect.tools.preparation.presence import presence

    left = {task for task in tasks if not task.startswith(TASK_PREFIX)}  # those are made when they are needed
    found = []
    for benchmark in BENCHMARKS.values():
        names = {task for questions in benchmark.questions for task in questions.tasks}
        if not (asked := left & names):
            continue
        left -= asked
        folder = hf_home() / benchmark.folder
        looked = [each for each in presence(benchmark) if asked & set(each.questions.tasks)]
        lacking = [complaint for each in looked for complaint in each.complaints]
        if not folder.is_dir():
            lacking = [f"expected in {folder}"]
        prepare = f"lmms-flexselect prepare {benchmark.name}"
        found.append(DataSet(benchmark.title, folder, tuple(lacking), benchmark.gigabytes, benchmark.gated, prepare))
    return found, sorted(left)
