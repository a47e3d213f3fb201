"""Files that are whole or not there, and what is said when they cannot be written: a full disk, above all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lmms_flexselect.errors import FlexSelectError, first_line


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """Makes one line of whatever goes wrong while `path` is written.

    A full disk is an ``OSError`` to Python alone: safetensors has an error of its own for it, and ``torch.save`` raises
    a ``RuntimeError`` that speaks of streams and positions.

    Raises
    ------
    FlexSelectError
        Naming the path, what went wrong, and how much room there is.
    """
    try:
        yield
    except FlexSelectError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        there = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free / 2**20
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FlexSelectError(
            f"{path}: could not be written ({reason}; {free:,.0f} MiB are free there); what was saved before is whole"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, whose file takes its place once it is whole, and is removed if it never is.

    Several processes may write the same one at once.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
