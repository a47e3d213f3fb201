"""A run's `dump_selection` folder, with the answers from its samples files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.scores.results import read_run
from lmms_flexselect.tools.scores.samples import read_answers
from lmms_flexselect.tools.show.views import VideoQuestion, join, read_dump, read_views

_Key = tuple[str, int]  # task, document


class LoggedAnswer(NamedTuple):
    """An answer of a samples file, the right one, and how right it was; None where that is not known."""

    answer: str
    target: str
    correct: float | None


def read_dumps(
    dump: Path,
    samples: Iterable[Path] = (),
    compare: Path | None = None,
    compare_samples: Iterable[Path] = (),
    only: str | None = None,
    limit: int | None = None,
) -> list[VideoQuestion]:
    """The samples of a dump, by task and document.

    Parameters
    ----------
    dump
        Folder of a run with ``dump_selection=``.
    samples
        Its samples files, or folders of them.
    compare, compare_samples
        The same of another run about the same samples; samples that it lacks are left out.
    only
        ``right`` or ``wrong``: samples that the first run answered so.
    limit
        At most so many.

    Raises
    ------
    FlexSelectError
        If a folder has no dumps, or a file is none; or nothing is left.
    """
    answers, others = _answers(samples), _answers(compare_samples)
    files = _files(dump)
    theirs = None if compare is None else _files(compare)
    other_name = "the other" if compare is None or dump.name == compare.name else compare.name
    keys = sorted(files if theirs is None else files.keys() & theirs.keys())
    if not keys:
        raise FlexSelectError(f"{dump} and {compare}: have no sample in common")
    if answers and not answers.keys() & set(keys):
        raise FlexSelectError(f"{next(iter(samples))}: answers none of the samples in {dump}")
    if only is not None:
        wanted = {"right": 1.0, "wrong": 0.0}[only]
        keys = [key for key in keys if key in answers and answers[key].correct == wanted]
        if not keys:
            raise FlexSelectError(f"--only {only}: no sample of {dump} is known to be {only}")
    found = []
    for key in keys[:limit]:
        seen = read_views(files[key], dump.name)
        _fill_in(seen, answers.get(key))
        if theirs is not None:
            other = read_views(theirs[key], other_name)
            _fill_in(other, others.get(key))
            join(seen, other)
        found += seen
    return found


def _files(folder: Path) -> dict[_Key, Path]:
    if not folder.is_dir():
        raise FlexSelectError(f"{folder}: no such folder of dump_selection")
    files: dict[_Key, Path] = {}
    for number, path in enumerate(sorted(folder.glob("*.npz"))):
        task, _, behind = path.stem.partition("__")
        document = behind.rpartition("__")[2]
        if not document.isdecimal():  # of no task, or somebody else's
            _, sample = read_dump(path)
            task, document = str(sample.get("task") or path.stem), str(number)
        files[task, int(document)] = path
    if not files:
        raise FlexSelectError(f"{folder}: no .npz of dump_selection in it")
    return files


def _answers(places: Iterable[Path]) -> dict[_Key, LoggedAnswer]:
    answers: dict[_Key, LoggedAnswer] = {}
    for place in places:
        files = sorted(place.rglob("*_samples_*.jsonl")) if place.is_dir() else [place]
        if not files:
            raise FlexSelectError(f"{place}: no *_samples_*.jsonl in it; lmms-eval writes them with --log_samples")
        for file in files:
            beginning, _, task = file.stem.partition("_samples_")
            results = file.with_name(f"{beginning}_results.json")
            score = read_run(results).scores.get(task) if results.is_file() else None
            known = score.samples if score is not None else None
            correct = {} if known is None else dict(zip(known.documents, known.correct, strict=True))
            for document, (answer, target) in read_answers(file).items():
                answers[task, document] = LoggedAnswer(answer, target, correct.get(document))
    return answers


def _fill_in(seen: list[VideoQuestion], logged: LoggedAnswer | None) -> None:
    if logged is None:
        return
    for each in seen:
        each.target = logged.target
        each.views[0].answer, each.views[0].correct = logged.answer, logged.correct
