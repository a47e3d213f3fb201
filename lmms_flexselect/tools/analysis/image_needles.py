"""Needle pictures with their questions: what a folder of them holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import OptionError, VideoError, first_line
from lmms_flexselect.families.pixels import read_picture

_LISTS = ("needles.json", "needles.jsonl")


@dataclass(frozen=True)
class ImageNeedle:
    """A picture, a question that it alone answers, and the answer."""

    image: Path
    question: str
    answer: str


def read_needles(path: str) -> list[ImageNeedle]:
    """The needles of a folder, or of a list of them.

    ``needles.json`` holds a list of objects, ``needles.jsonl`` one a line; each has ``image``, a path beside the file,
    ``question`` and, for people, ``answer``.

    Raises
    ------
    OptionError
        If there is no such file, it says something else, or a picture is missing or cannot be read.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        there = [file / name for name in _LISTS if (file / name).is_file()]
        if not there:
            raise OptionError(f"needles={path}: the folder has no {' or '.join(_LISTS)}")
        file = there[0]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"needles={path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        listed = [json.loads(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{file}: is not JSON ({first_line(error)})") from None
    if not isinstance(listed, list) or not listed:
        raise OptionError(f"{file}: must hold a list of needles, each with image, question and answer")
    return [_needle(file, number, entry) for number, entry in enumerate(listed, 1)]


def _needle(file: Path, number: int, entry: Any) -> ImageNeedle:
    if not isinstance(entry, Mapping):
        raise OptionError(f"{file}: needle {number} is no object with image, question and answer")
    for name in ("image", "question"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise OptionError(f"{file}: needle {number} has no {name}")
    image = file.parent / entry["image"]
    try:
        read_picture(image)
    except VideoError as error:
        complaint = str(error) if image.is_file() else f"{image}: no such image"
        raise OptionError(f"{file}: needle {number}: {complaint}") from None
    return ImageNeedle(image, entry["question"].strip(), str(entry.get("answer", "")))
