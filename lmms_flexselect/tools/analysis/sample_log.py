"""The file that a stopped measurement goes on from: a JSON line a sample, behind one with what they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import OptionError
from lmms_flexselect.saving import saving


class SampleLog:
    """Measured samples by their id; each is on disk once it is added.

    Parameters
    ----------
    path
        Of the file; made with its folder if it is not there. A last line that was cut off is dropped.
    about
        What the samples depend on.

    Raises
    ------
    OptionError
        If the file was begun with something else, naming the first difference, or is another kind of file.
    FlexSelectError
        If it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        wanted = json.loads(json.dumps(dict(about)))
        self.samples: dict[str, dict[str, Any]] = {}
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if not whole:
                path.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
            elif whole != text:
                path.write_text(whole, encoding="utf-8")
        if whole:
            self._take(whole.splitlines(), wanted)

    def _take(self, lines: list[str], wanted: Mapping[str, Any]) -> None:
        try:
            begun, *samples = map(json.loads, lines)
            self.samples = {sample["id"]: sample for sample in samples}
        except (ValueError, KeyError, TypeError):
            raise OptionError(f"{self._path}: holds no finished samples; give another output") from None
        if difference := _difference(begun, wanted):
            raise OptionError(f"{self._path}: was begun with {difference}; give another output, or remove it")

    def add(self, sample: Mapping[str, Any]) -> None:
        """Keep what one sample came to; it has an ``id``."""
        with saving(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(sample)) + "\n")
        self.samples[sample["id"]] = dict(sample)


def _difference(begun: Any, wanted: Any, name: str = "") -> str | None:
    """The first difference of two nested dicts, in words."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        parts = (_difference(begun.get(key), wanted.get(key), key) for key in {**wanted, **begun})
        return next((part for part in parts if part), None)
    return None if begun == wanted else f"{name or 'something else'}: {begun}, now {wanted}"
