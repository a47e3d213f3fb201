"""The ``dump_selection`` files: one compressed ``.npz`` a sample, written whole or not at all.

==================  ====================  ==========================================================================
array               shape, dtype          meaning
==================  ====================  ==========================================================================
``kept``            (visual,) bool        which visual tokens stayed
``scores``          (visual,) float32     relevance before the top-k; NaN where nothing was scored
``frame``           (visual,) int32       unit (see `VideoPrompt.frame`) of its video of each visual token
``video``           (visual,) int16       video of each visual token, counted through the prompt
``frame_set``       (visual,) int32       frame set of each visual token, counted through the prompt
``column``          (visual,) int32       place of each visual token in the full prompt
``positions``       (axes, tokens) int32  positions of the shortened prompt
``grids``           (videos, 3) int32     frames, rows and columns of each video's tokens
``input_ids``       (tokens,) int32       the shortened prompt
``sample``          () str                JSON: task, split, doc_id, question, family; videos: path, fps, frames_indices
==================  ====================  ==========================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lmms_flexselect.method.flexselect import Selection
from lmms_flexselect.saving import replacing


def write_selection(path: Path, selection: Selection, sample: dict[str, Any]) -> None:
    """Write what was kept of one sample.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    """
    text = json.dumps(sample, default=_plain)
    prompt = selection.prompt
    arrays = {
        "kept": selection.visual_kept.cpu().numpy(),
        "scores": selection.scores.cpu().numpy(),
        "frame": selection.visual_frame.cpu().numpy().astype(np.int32),
        "video": selection.visual_video.cpu().numpy().astype(np.int16),
        "frame_set": selection.frame_set.cpu().numpy().astype(np.int32),
        "column": selection.visual_columns.cpu().numpy().astype(np.int32),
        "positions": prompt.position_ids.cpu().numpy().astype(np.int32),
        "grids": np.array(prompt.grids, dtype=np.int32).reshape(-1, 3),
        "input_ids": prompt.input_ids.cpu().numpy().astype(np.int32),
        "sample": np.array(text),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_selection(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and sample of a file that `write_selection` wrote; no pickles are read."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "sample"}
        return arrays, json.loads(str(stored["sample"]))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
