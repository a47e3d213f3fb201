"""A benchmark's data from the hub to where lmms-eval looks for them."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HUB_CACHE

from lmms_flexselect.errors import FlexSelectError, first_line
from lmms_flexselect.tools.preparation import hub
from lmms_flexselect.tools.preparation.benchmarks import Benchmark
from lmms_flexselect.tools.preparation.presence import presence, recorded_sizes
from lmms_flexselect.tools.preparation.unpack import DAMAGED, damaged, delete, is_unpacked, record, unpack

_GIB = 1 << 30


def prepare(benchmark: Benchmark, home: Path, delete_archives: bool = False) -> None:
    """Download what is missing and unpack it; can be stopped and called again, and does nothing if all is there.

    Downloads go to the hub's cache, where lmms-eval's own would go, and files to ``home / benchmark.folder``. Archive
    after archive, so that with `delete_archives` no more than one is on disk.

    Raises
    ------
    FlexSelectError
        In one line: gated, not reachable, no room on the disk, a damaged archive, or another `prepare` at work.
    """
    with _alone(benchmark, home):
        if all(found.complete for found in presence(benchmark, home)):
            return
        for repository in dict.fromkeys(questions.repository for questions in benchmark.questions):
            _fetch_questions(benchmark, repository)
        if all(found.complete for found in presence(benchmark, home)):
            return
        folder = home / benchmark.folder
        archives = {
            name: parts
            for name, parts in _archives(benchmark).items()
            if not is_unpacked(folder, name, sum(parts.values()))
        }
        _check_room(benchmark, folder, archives, delete_archives)
        for number, (name, parts) in enumerate(archives.items(), 1):
            print(f"{benchmark.name}: {name} ({number} of {len(archives)}, {_gib(sum(parts.values()))})", flush=True)
            paths = [hub.download(benchmark.repository, part) for part in parts]
            try:
                record(folder, name, sum(parts.values()), unpack(paths, folder))
            except DAMAGED as error:
                raise damaged(paths, error) from None
            except OSError as error:
                raise FlexSelectError(f"{folder}: {error.strerror or first_line(error)}") from None
            if delete_archives:
                for path in paths:
                    delete(path)


def _fetch_questions(benchmark: Benchmark, repository: str) -> None:
    names = hub.files(repository)
    for questions in benchmark.questions:
        if questions.repository != repository:
            continue
        matching = [name for name in names if fnmatch(name, questions.pattern)]
        if not matching:
            raise FlexSelectError(f"{repository}: has no {questions.pattern}; this needs a newer lmms-flexselect")
        for name in matching:
            hub.download(repository, name)
        if questions.unfold is None:
            _load_as_tasks_do(repository)


def _load_as_tasks_do(repository: str) -> None:
    """Put the questions into the cache of `datasets`, where lmms-eval finds them on a machine without a hub."""
    import datasets  # over a second, and not needed where all is there

    try:
        datasets.load_dataset(repository, cache_dir=os.getenv("LMMS_EVAL_DATASETS_CACHE") or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise FlexSelectError(f"{repository}: cannot be loaded ({first_line(error)})") from None


def _archives(benchmark: Benchmark) -> dict[str, dict[str, int]]:
    """The archives of a benchmark: of each its parts, in order, and their sizes in bytes."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, size in sorted(hub.files(benchmark.repository).items()):
        if any(fnmatch(name, pattern) for pattern in benchmark.archives):
            found[re.sub(r"\.part\.\w+$", "", name)][name] = size
    if not found:
        patterns = ", ".join(benchmark.archives)
        raise FlexSelectError(f"{benchmark.repository}: has no {patterns}; this needs a newer lmms-flexselect")
    return dict(found)


def _check_room(benchmark: Benchmark, folder: Path, archives: dict[str, dict[str, int]], delete_archives: bool) -> None:
    """Raise unless the disks have room for what is still to be downloaded and unpacked.

    Videos do not compress, so that an archive takes as much again when it is unpacked.
    """
    missing = [
        sum(size for part, size in parts.items() if hub.cached(benchmark.repository, part) is None)
        for parts in archives.values()
    ]
    downloads = max(missing, default=0) if delete_archives else sum(missing)
    recorded = recorded_sizes(folder)
    partly = sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in recorded
    )
    unpacked = max(0, sum(sum(parts.values()) for parts in archives.values()) - partly)
    needed: dict[int, tuple[Path, int]] = {}
    for path, size in ((Path(HF_HUB_CACHE), downloads), (folder, unpacked)):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        device = existing.stat().st_dev
        needed[device] = (existing, needed.get(device, (existing, 0))[1] + size)
    for existing, size in needed.values():
        free = shutil.disk_usage(existing).free
        if size > free:
            less = "" if delete_archives else ", or add --delete_archives, which needs about half"
            blobs = Path(HF_HUB_CACHE) / f"datasets--{benchmark.repository.replace('/', '--')}" / "blobs"
            # huggingface_hub never takes these up again.
            stopped = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
            left = f"; {_gib(stopped)} are left of stopped downloads in {blobs}/*.incomplete" if stopped else ""
            raise FlexSelectError(
                f"{benchmark.title} needs {_gib(size)} on the disk of {existing}, where {_gib(free)} are free (to "
                f"download {_gib(downloads)}, unpacked {_gib(unpacked)}{left}): make room, set HF_HOME elsewhere{less}"
            )


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB"


@contextmanager
def _alone(benchmark: Benchmark, home: Path) -> Iterator[None]:
    # Not in the benchmark's folder: lmms-eval takes that for complete as soon as it exists.
    lock = FileLock(home / f".flexselect_prepare_{benchmark.name}.lock", timeout=0)
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FlexSelectError(f"another `lmms-flexselect prepare {benchmark.name}` is at work in {home}") from None
    except OSError as error:
        raise FlexSelectError(f"{home}: cannot be written to ({error.strerror or first_line(error)})") from None
    try:
        yield
    finally:
        lock.release()
