"""The files of the training data: what a path or a YAML list of them comes down to, item by item."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.errors import OptionError, first_line

_STRATEGY = re.compile(r"(first|end|random):\s*(\d+|\d*\.?\d+(?=%))(%?)")
_ENTRY_KEYS = {"json_path", "sampling_strategy", "data_folder", "video_folder"}


@dataclass(frozen=True)
class Entry:
    """Files read as one list, which of their items are taken, and the folder of their videos."""

    files: list[Path]
    strategy: str = "all"
    folder: str = ""


def entries_of(path: Path) -> list[Entry]:
    """What a path given by the user comes down to; every file is looked for before the first is read."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return [Entry(_files(path))]
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"{path}: cannot be read as YAML ({_reason(error)})") from None
    listed = listed.get("datasets") if isinstance(listed, dict) else None
    if not isinstance(listed, list) or not listed:
        raise OptionError(f"{path}: must hold a list `datasets:` of entries with a json_path")
    entries = []
    for number, given in enumerate(listed, 1):
        where = f"{path}: entry {number}"
        if not isinstance(given, dict) or not isinstance(given.get("json_path"), str):
            raise OptionError(f"{where}: has no json_path")
        if unknown := [key for key in given if key not in _ENTRY_KEYS]:
            raise OptionError(f"{where}: unknown key {unknown[0]}; must be among {', '.join(sorted(_ENTRY_KEYS))}")
        strategy = str(given.get("sampling_strategy", "all")).strip()
        match = _STRATEGY.fullmatch(strategy)
        if strategy != "all" and not (match and 0 < Fraction(match[2]) <= (100 if match[3] else math.inf)):
            raise OptionError(
                f"{where}: sampling_strategy={strategy}: must be all, or first, end or random with a number from 1 or "
                "a percentage up to 100%, as in first:1000 or random:5%"
            )
        folder = str(given.get("video_folder") or given.get("data_folder") or "")
        entries.append(Entry(_files(path.parent / given["json_path"]), strategy, folder))
    return entries


def _files(pattern: Path) -> list[Path]:
    """The files that a path with braces stands for."""
    parts = [part.split(",") if index % 2 else [part] for index, part in enumerate(re.split(r"[{}]", str(pattern)))]
    files = [pattern] if pattern.exists() else [Path("".join(choice)) for choice in itertools.product(*parts)]
    for file in files:
        if file.suffix.lower() not in (".json", ".jsonl"):
            raise OptionError(f"{file}: unknown kind of file; must end in .json, .jsonl, .yaml or .yml")
        if not file.is_file():
            raise OptionError(f"{file}: {'is a folder, not' if file.is_dir() else 'no such'} file of training data")
    return files


def _items(file: Path) -> Iterator[dict[str, Any]]:
    """The conversations of one file."""
    listed: Iterable[tuple[str, Any]]
    try:
        with open(file, encoding="utf-8-sig") as stream:
            if file.suffix.lower() == ".json":
                whole = json.load(stream)
                if not isinstance(whole, list):
                    raise OptionError(f"{file}: must hold a list of conversations; this is a {type(whole).__name__}")
                listed = ((f"item {number}", item) for number, item in enumerate(whole, 1))
            else:
                lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
                listed = ((f"line {number}", _line(file, number, line)) for number, line in lines)
            for place, item in listed:
                if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
                    raise OptionError(f"{file}: {place} is no conversation; it has no list `conversations`")
                yield item
    except json.JSONDecodeError as error:
        hint = "; one object a line is read from a file ending in .jsonl" if error.msg == "Extra data" else ""
        raise OptionError(f"{file}: line {error.lineno} is not JSON ({error.msg}){hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{file}: cannot be read ({_reason(error)})") from None


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise OptionError(f"{file}: line {number} is not JSON ({error.msg})") from None


def taken(entry: Entry, seed: int, left_out: Counter[str]) -> Iterable[tuple[Path, dict[str, Any]]]:
    """What an entry's strategy takes of its items, of whatever sort; a percentage is rounded up."""
    items = ((file, item) for file in entry.files for item in _items(file))
    match = _STRATEGY.fullmatch(entry.strategy)
    if not match:
        return items
    listed = list(items)
    how, number, percent = match.groups()
    count = math.ceil(Fraction(number) * len(listed) / 100) if percent else int(number)
    left_out["sampling_strategy"] += max(0, len(listed) - count)
    if how == "random":
        # Not the draw of `share`, which would prefer what was taken here to what other entries give.
        listed.sort(key=lambda each: digest("random", seed, json.dumps(each[1], sort_keys=True)))
    return listed[-count:] if how == "end" else listed[:count]


def digest(*parts: object) -> str:
    """The same on every machine and in every process, unlike `hash`."""
    return hashlib.blake2b(ascii(parts).encode(), digest_size=8).hexdigest()


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else first_line(error)
