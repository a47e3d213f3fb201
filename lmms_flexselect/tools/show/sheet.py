"""One view of a video as a picture: the contact sheet, kept tokens over time, and the frames ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lmms_flexselect.tools.plotting import pyplot
from lmms_flexselect.tools.show.views import VideoQuestion, View, read_views, thumbnails

_DIMMED = 0.35
_GLOW = 0.85  # of the most relevant token that was dropped
_ACROSS = 16  # tiles
_RANKED = 8
_GAP = 6  # pixels between tiles
_TILES = ((64, 160), (256, 112), (10**9, 80))  # width of a tile by how many there are
_LEAST_FRAMED = 6  # pixels of a cell's side
_HEAT = np.array([255, 122, 24])
_KEPT = "#c2410c"


def dumped_sheet(dump: Path, path: Path) -> None:
    """Write the first video of a `dump_selection` file as PNG; see `contact_sheet`."""
    first = read_views(dump, "selection")[0]
    contact_sheet(first, first.views[0], thumbnails(first.path, first.indices), path)


def contact_sheet(of: VideoQuestion, view: View, pictures: list[np.ndarray], path: Path) -> None:
    """Write one view as PNG.

    Frames in their order with their numbers; dropped tokens dimmed and warm where their relevance ranks high in their
    frame set, kept ones lit and framed. Below, how many tokens of each frame were kept, over time, and the
    frames of the most relevant tokens.

    Parameters
    ----------
    of, view
        What is drawn.
    pictures
        ``(height, width, 3)`` uint8 each: the frames.
    path
        Of the PNG.
    """
    plt = pyplot()
    frames = len(pictures)
    width = next(width for most, width in _TILES if frames <= most)
    tiles = [_tile(picture, view, number, width) for number, picture in enumerate(pictures)]
    ranked = view.frames_ranked()[:_RANKED]
    large = [_tile(pictures[number], view, number, 2 * width) for number in ranked]
    across = min(_ACROSS, frames)
    inch = 14.0
    heights = [
        inch * -(-frames // across) * (tiles[0].shape[0] + _GAP) / (across * (width + _GAP)),
        1.3,
        inch / _RANKED * tiles[0].shape[0] / width + 0.25,
    ]
    figure, (sheet, strip, best) = plt.subplots(
        3, 1, figsize=(inch, sum(heights) + 1.3), height_ratios=heights, layout="constrained"
    )
    _tiled(sheet, tiles, list(range(frames)), across, view)
    _strip(strip, of, view)
    _tiled(best, large, ranked, _RANKED, view)
    scored = not np.isnan(view.best).all()
    best.set_title("most relevant frames" if scored else "frames that kept most tokens", loc="left", fontsize=9)
    kept = f"{view.name}: {view.kept_of_frames.sum():,} of {view.tokens:,} visual tokens kept"
    answer = "" if view.answer is None else f"; answer: {view.answer.strip() or '(empty)'}{_verdict(view, of)}"
    figure.suptitle(f"{of.title}: {of.question.strip()}\n{kept}{answer}".replace("$", r"\$"), fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _verdict(view: View, of: VideoQuestion) -> str:
    if view.correct is None:
        return ""
    verdict = "right" if view.correct == 1 else "wrong" if view.correct == 0 else f"{view.correct:.2g} right"
    return f" ({verdict}; right is {of.target})" if view.correct < 1 else f" ({verdict})"


def _tile(picture: np.ndarray, view: View, number: int, width: int) -> np.ndarray:
    """A frame with its overlay, ``(height, width, 3)`` uint8."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    tile = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)).astype(float)
    kept, rank = view.kept[number], np.nan_to_num(view.rank[number])
    rows, columns = kept.shape
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    glow = (_GLOW * rank**3)[row][:, column, None]
    lit = kept[row][:, column]
    dimmed = tile * _DIMMED
    tile = np.where(lit[..., None], tile, dimmed + (_HEAT - dimmed) * glow * 0.7)
    tile[lit & _edges(row, column)] = 255
    return tile.astype(np.uint8)


def _edges(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The outermost pixels of every cell; none where cells are too small to have any."""
    edges = np.zeros((len(row), len(column)), bool)
    if min(np.bincount(row).min(), np.bincount(column).min()) < _LEAST_FRAMED:
        return edges
    for axis, of in enumerate((row, column)):
        first = np.r_[True, np.diff(of) > 0]
        edges |= np.expand_dims(first | np.r_[first[1:], True], 1 - axis)
    return edges


def _tiled(axes: Any, tiles: list[np.ndarray], numbers: list[int], across: int, view: View) -> None:
    high, wide = tiles[0].shape[0] + _GAP, tiles[0].shape[1] + _GAP
    canvas = np.full((-(-len(tiles) // across) * high, across * wide, 3), 255, np.uint8)
    of_frames = view.kept_of_frames
    for place, (tile, number) in enumerate(zip(tiles, numbers, strict=True)):
        top, left = place // across * high, place % across * wide
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        label = f"{number}" if not of_frames[number] else f"{number}: {of_frames[number]}"
        colour = _KEPT if of_frames[number] else "#444444"
        box = {"facecolor": "white", "alpha": 0.85, "lw": 0, "pad": 0.8}
        axes.text(left + 1, top + 1, label, fontsize=6, color=colour, va="top", ha="left", bbox=box)
    axes.imshow(canvas, aspect="equal", interpolation="antialiased")
    axes.set_axis_off()


def _strip(axes: Any, of: VideoQuestion, view: View) -> None:
    seconds = np.array(of.seconds)
    step = float(np.diff(seconds).mean()) if len(seconds) > 1 else 1.0
    axes.bar(seconds, view.kept_of_frames, width=step * 0.9, align="edge", color=_KEPT)
    axes.set(xlim=(seconds[0], seconds[-1] + step), ylabel="tokens kept", xlabel="seconds")
    axes.spines[["top", "right"]].set_visible(False)
