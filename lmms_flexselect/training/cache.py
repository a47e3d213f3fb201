"""A teacher's scores on disk: computed once, for as many epochs, runs and students as there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.saving import replacing, saving

ABOUT = "teacher.json"


def same_teacher(folder: str | Path, about: Mapping[str, Any]) -> None:
    """Note in a folder what its scores or students come from; refuse a folder that says something else.

    Raises
    ------
    OptionError
        If it says something else, naming the first difference; or cannot be written.
    """
    folder, wanted = Path(folder), json.loads(json.dumps(dict(about)))
    path = folder / ABOUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with replacing(path) as unfinished:  # other processes look here too
                unfinished.write_text(json.dumps(wanted, indent=2) + "\n")
            return
        found = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise OptionError(f"{path}: cannot be read or written ({error})") from None
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise OptionError(
                f"{folder}: was begun with another teacher ({name}: {found.get(name)}, now {wanted.get(name)}); "
                "give another folder, or the same teacher"
            )


class ScoreCache:
    """Scores ``(visual,)`` float32 by the name of their example; a file each, written whole or not at all.

    Parameters
    ----------
    folder
        Made if it is not there.
    about
        What the scores depend on (see `same_teacher`).
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any]) -> None:
        same_teacher(folder, about)
        self._folder = Path(folder)

    def get(self, name: str) -> Tensor | None:
        """None for one that is not there, or was cut off."""
        try:
            return torch.from_numpy(np.load(self._path(name), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None

    def put(self, name: str, scores: Tensor) -> None:
        """Keep the scores of an example.

        Raises
        ------
        FlexSelectError
            If they cannot be written.
        """
        path = self._path(name)
        with saving(path):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as unfinished, open(unfinished, "wb") as file:
                np.save(file, scores.float().cpu().numpy())

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self._folder / key[:2] / f"{key}.npy"
