"""Where a checkpoint is, without asking a hub, and a stand-in for one whose shape alone is known."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME


@dataclass(frozen=True)
class Checkpoint:
    """A model or a selector, as a config names it.

    Attributes
    ----------
    name
        Hub name or folder.
    state
        ``folder``, ``cached``, ``partial`` (a download that was not finished), ``published`` (not here, its shape is
        known), or ``absent``.
    place
        Folder that has its ``config.json``; None if it is absent.
    missing
        Weight files that are not there though the others are.
    """

    name: str
    state: str
    place: str | None
    missing: tuple[str, ...] = ()

    @property
    def here(self) -> bool:
        """Whether it can be loaded without a hub."""
        return self.state in ("folder", "cached") and not self.missing


def find_checkpoint(name: str, stand_ins: Path) -> Checkpoint:
    """Look for a checkpoint on this machine.

    Parameters
    ----------
    name
        Hub name or folder.
    stand_ins
        Folder for what stands in for published checkpoints that are not here, while options are resolved.
    """
    if os.path.isdir(name):
        return Checkpoint(name, "folder", name, _missing(lambda file: _beside(Path(name), file)))
    if (config := _cached(name, "config.json")) is not None:
        missing = _missing(lambda file: _cached(name, file))
        return Checkpoint(name, "partial" if missing else "cached", str(Path(config).parent), missing)
    if name in published():
        return Checkpoint(name, "published", str(write_stand_in(name, stand_ins)))
    return Checkpoint(name, "absent", None)


def write_stand_in(name: str, root: Path, **changes: Any) -> Path:
    """A folder that is called like a published checkpoint and has its ``config.json`` and nothing else to load.

    `changes` are entries that it has otherwise than published.
    """
    contents = {**published()[name], **changes}
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "added_tokens.json").write_text(json.dumps(contents.pop("added_tokens", {})))
    (folder / "config.json").write_text(json.dumps(contents))
    return folder


@cache
def published() -> dict[str, dict[str, Any]]:
    """What is known of published checkpoints, by hub name."""
    return yaml.safe_load(files("lmms_flexselect.tools.doctor").joinpath("published.yaml").read_text())


def _missing(find: Any) -> tuple[str, ...]:
    """Weight files that are not there: of an index those that it names, else the single file."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if find(single):
            return ()
        if found := find(index):
            try:
                shards = sorted(set(json.loads(Path(found).read_text())["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError):
                return (index,)
            return tuple(shard for shard in shards if not find(shard))
    return (SAFE_WEIGHTS_NAME,)


def _beside(folder: Path, name: str) -> str | None:
    return str(folder / name) if (folder / name).is_file() else None


def _cached(name: str, file: str) -> str | None:
    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # no hub name
        return None
    return found if isinstance(found, str) else None
