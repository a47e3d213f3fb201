"""Archives into a folder, so that stopping at any point costs nothing but time."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from lmms_flexselect.errors import FlexSelectError, first_line
from lmms_flexselect.tools.preparation.presence import RECORD, read_record

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)
_PART = ".flexselect_part"  # a file while it is written


def unpack(parts: list[Path], folder: Path) -> dict[str, int]:
    """Unpack one archive, ``.zip`` or ``.tar``, which may be cut into parts; returns its files and their sizes.

    Paths in the archive are kept, as lmms-eval keeps them. A file appears under its name only once it is whole; one
    that is there with the right size is left alone, so that a second call goes on where the first was stopped. Parts
    are read one after the other and never put together on disk. A tar file that ends between two of its files passes
    for whole, as with every reader of tar files; what the questions need is counted afterwards (`presence`).

    Raises
    ------
    FlexSelectError
        If the archive would write outside `folder`.
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError
        If it is damaged (`DAMAGED`).
    OSError
        If the disk is full.
    """
    sizes = {}
    for name, size, content in _zip_members(parts[0]) if parts[0].suffix == ".zip" else _tar_members(parts):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise FlexSelectError(f"{parts[0]}: holds {name}, which lies outside of {folder}")
        target = folder / name
        sizes[PurePosixPath(name).as_posix()] = size
        if target.is_file() and target.stat().st_size == size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_name(target.name + _PART)
        with written.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        if written.stat().st_size != size:
            raise EOFError(f"{name} ends early")
        os.replace(written, target)
    return sizes


def record(folder: Path, archive: str, size: int, files: dict[str, int]) -> None:
    """Write down that an archive of `size` bytes is unpacked as a whole."""
    entry = {archive: {"bytes": size, "files": files}}
    written = folder / (RECORD + _PART)
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps({**read_record(folder), **entry}))
    os.replace(written, folder / RECORD)


def is_unpacked(folder: Path, archive: str, size: int) -> bool:
    """Whether the archive was unpacked as a whole, at that size, and its files are all there and whole."""
    entry = read_record(folder).get(archive)
    if entry is None or entry["bytes"] != size:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == n for name, n in entry["files"].items())


def damaged(parts: list[Path], error: Exception) -> FlexSelectError:
    """Remove a damaged archive from the hub's cache, so that it is not found there again; returns what to say."""
    for part in parts:
        delete(part)
    return FlexSelectError(f"{parts[0].name}: was damaged and is deleted ({first_line(error)}): run this again")


def delete(cached: Path) -> None:
    """Delete a file of the hub's cache, which is a link to the content."""
    cached.resolve().unlink(missing_ok=True)
    cached.unlink(missing_ok=True)


def _zip_members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as content:
                    yield info.filename, info.file_size, content


def _tar_members(parts: list[Path]) -> Iterator[tuple[str, int, IO[bytes]]]:
    # "r|": the stream is read once, without seeking.
    with tarfile.open(fileobj=_Joined(parts), mode="r|*") as archive:  # type: ignore[call-overload]
        for info in archive:
            content = archive.extractfile(info) if info.isfile() else None
            if content is not None:
                yield info.name, info.size, content


class _Joined:
    """The parts of a file, read as one."""

    def __init__(self, parts: list[Path]) -> None:
        self.files = [part.open("rb") for part in parts]

    def read(self, size: int) -> bytes:
        while self.files:
            if block := self.files[0].read(size):
                return block
            self.files.pop(0).close()
        return b""
