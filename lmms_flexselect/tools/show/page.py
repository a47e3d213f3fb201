"""The page: one HTML file with everything in it, its data as JSON that `page.js` draws."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from lmms_flexselect.tools.show.views import VideoQuestion, View

_LEVELS = 126  # a cell is a byte: the highest bit is whether it stayed, the others are 0 (not scored) or 1 + its rank
_KEPT_BIT = 128


def page(
    samples: list[VideoQuestion], pictures: dict[tuple[str, tuple[int, ...]], list[np.ndarray]], title: str
) -> str:
    """The page's text.

    Parameters
    ----------
    samples
        What to step through.
    pictures
        The frames of each video, ``(height, width, 3)`` uint8 each, by its path and `VideoQuestion.indices`.
    title
        Of the page.
    """
    numbers = {key: number for number, key in enumerate(pictures)}
    data = {
        "videos": [[_picture(frame) for frame in frames] for frames in pictures.values()],
        "samples": [_sample(each, numbers[each.path, tuple(each.indices)]) for each in samples],
    }
    parts = {name: _part(f"page.{name}") for name in ("css", "js")}
    # Nothing in a script's text may look like its end.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(_part("page.html")).substitute(parts, title=_escaped(title), data=text)


def _part(name: str) -> str:
    return files("lmms_flexselect.tools.show").joinpath(name).read_text("utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _sample(of: VideoQuestion, video: int) -> dict[str, Any]:
    return {
        "title": of.title,
        "question": of.question,
        "target": of.target,
        "path": of.path,
        "video": video,
        "indices": of.indices,
        "seconds": [round(second, 2) for second in of.seconds],
        "grid": list(of.views[0].kept.shape),
        "views": [_view(view) for view in of.views],
    }


def _view(view: View) -> dict[str, Any]:
    scored = ~np.isnan(view.rank)
    cells = np.where(scored, 1 + np.rint(np.nan_to_num(view.rank) * _LEVELS), 0).astype(np.uint8)
    cells |= np.where(view.kept, _KEPT_BIT, 0).astype(np.uint8)
    return {
        "name": view.name,
        "cells": base64.b64encode(cells.tobytes()).decode(),
        "best": [None if np.isnan(score) else float(f"{score:.4g}") for score in view.best],
        "beside": view.beside.tolist(),
        "sets": view.frame_set.tolist(),
        "ranked": view.frames_ranked(),
        "tokens": view.tokens,
        "kept": int(view.kept_of_frames.sum()),
        "answer": view.answer,
        "correct": view.correct,
    }


def _picture(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=72)
    return base64.b64encode(buffer.getvalue()).decode()
