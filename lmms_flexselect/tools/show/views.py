"""What is drawn of a dumped selection: small frames, their cells, and what was kept beside these."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import rankdata

from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import FlexSelectError, first_line
from lmms_flexselect.families.spec import families
from lmms_flexselect.video.reading import VideoFile, with_video

_ARRAYS = {"kept", "scores", "frame", "video", "frame_set", "grids"}
# Widest picture by how many frames there are, so that a page stays some megabytes long.
_WIDTHS = ((64, 224), (256, 160), (10**9, 112))


@dataclass
class View:
    """What one selector made of one video.

    Attributes
    ----------
    name
        Of the selector, for people.
    kept
        ``(frames, rows, columns)`` bool: which cells of the pictures stayed.
    rank
        ``(frames, rows, columns)`` float32: place of a token's relevance among those of its frame set, 0 (least) to 1;
        NaN where nothing was scored.
    best
        ``(frames,)`` float32: the highest relevance score of each frame; NaN where nothing was scored.
    beside
        ``(frames,)`` int64: kept tokens that are no part of the picture (marks around a frame, newlines).
    frame_set
        ``(frames,)`` int64: the frame set of each frame, counted from 0.
    tokens
        Visual tokens of the video, those beside the pictures too.
    answer
        What the model said; None where that is not known.
    correct
        0..1; None where that is not known.
    """

    name: str
    kept: np.ndarray
    rank: np.ndarray
    best: np.ndarray
    beside: np.ndarray
    frame_set: np.ndarray
    tokens: int
    answer: str | None = None
    correct: float | None = None

    @property
    def kept_of_frames(self) -> np.ndarray:
        """``(frames,)`` int64: how many tokens of each frame stayed."""
        return self.kept.sum((1, 2)) + self.beside

    def frames_ranked(self) -> list[int]:
        """Frame numbers by their most relevant token; where nothing was scored, by how many tokens were kept."""
        best = np.nan_to_num(self.best, nan=-np.inf)
        return np.lexsort((np.arange(len(best)), -self.kept_of_frames, -best)).tolist()


@dataclass
class VideoQuestion:
    """One question about one video, and how selectors saw it.

    Attributes
    ----------
    title
        Task and document, or the video's name.
    question
        As the model read it.
    path
        Of the video.
    indices
        ``(frames,)``: which of the video's frames each picture is; of a temporal unit the first.
    seconds
        ``(frames,)``: when that is.
    views
        At least one.
    target
        The right answer; None where that is not known.
    """

    title: str
    question: str
    path: str
    indices: list[int]
    seconds: list[float]
    views: list[View] = field(default_factory=list)
    target: str | None = None


def read_dump(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """`read_selection`, for a file that somebody names.

    Raises
    ------
    FlexSelectError
        If it is none of `dump_selection`'s, or not whole.
    """
    try:
        arrays, sample = read_selection(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FlexSelectError(f"{path}: not a whole file of dump_selection ({first_line(error)})") from None
    if missing := sorted(_ARRAYS - set(arrays)):
        raise FlexSelectError(f"{path}: not a file of dump_selection: it has no {missing[0]}")
    if not isinstance(sample, dict) or len(sample.get("videos") or ()) != len(arrays["grids"]):
        raise FlexSelectError(f"{path}: its sample names other videos than it has tokens of")
    return arrays, sample


def read_views(path: Path, name: str) -> list[VideoQuestion]:
    """A dumped selection: one `VideoQuestion` a video of its prompt, each with one view of this name.

    Raises
    ------
    FlexSelectError
        If it is no such file, or its tokens do not lie as its grids say.
    """
    arrays, sample = read_dump(path)
    spec = families().get(str(sample.get("family")))
    behind_row = 0 if spec is None else spec.tokens_behind_row
    title = f"{sample.get('task') or path.stem}, document {sample.get('doc_id')}"
    found = []
    for number, (frames, rows, columns) in enumerate(arrays["grids"].tolist()):
        of = sample["videos"][number]
        raw = of["frames_indices"]
        indices = [int(index) for index in raw[:: max(1, len(raw) // frames)][:frames]]
        seconds = [index / float(of.get("fps") or 1) for index in indices]
        several = f", video {number + 1} of {len(arrays['grids'])}" if len(arrays["grids"]) > 1 else ""
        own = {n: arrays[n][arrays["video"] == number] for n in ("kept", "scores", "frame", "frame_set")}
        try:
            view = _view(name, own, (frames, rows, columns), behind_row)
        except ValueError as error:
            raise FlexSelectError(f"{path}: {error}") from None
        found.append(
            VideoQuestion(title + several, str(sample.get("question", "")), str(of["path"]), indices, seconds, [view])
        )
    return found


def _view(name: str, own: dict[str, np.ndarray], grid: tuple[int, int, int], behind_row: int) -> View:
    """`behind_row` tokens of each row of the grid are none of the picture, nor are those that a frame has beside it."""
    frames, rows, columns = grid
    tokens = len(own["frame"])
    a_frame = tokens // frames
    marks = a_frame - rows * columns
    if tokens != frames * a_frame or marks < 0 or marks % 2 or (np.diff(own["frame"]) < 0).any():
        raise ValueError(f"{tokens} visual tokens do not lie as {frames} x {rows} x {columns}")
    before = marks // 2  # as many behind

    def cells(values: np.ndarray) -> np.ndarray:
        of_frames = values.reshape(frames, a_frame)[:, before : a_frame - before]
        in_rows = of_frames.reshape(frames, rows, columns)
        return in_rows[..., : columns - behind_row]

    kept = cells(own["kept"])
    by_frame = own["scores"].reshape(frames, a_frame)
    scored = ~np.isnan(by_frame).all(1)
    best = np.full(frames, np.nan, np.float32)
    best[scored] = np.nanmax(by_frame[scored], 1)
    sets = own["frame_set"].reshape(frames, a_frame)[:, 0].astype(np.int64)
    return View(
        name,
        kept,
        cells(_ranks(own["scores"], own["frame_set"])),
        best,
        own["kept"].reshape(frames, a_frame).sum(1) - kept.sum((1, 2)),
        sets - sets.min(),
        tokens,
    )


def _ranks(scores: np.ndarray, frame_set: np.ndarray) -> np.ndarray:
    """0..1 within each frame set, in which alone scores are comparable; equal scores have equal ranks."""
    ranks = np.full(len(scores), np.nan, np.float32)
    for number in np.unique(frame_set):
        of_set = np.flatnonzero((frame_set == number) & ~np.isnan(scores))
        if len(of_set):
            ranks[of_set] = (rankdata(scores[of_set], "average") - 1) / max(1, len(of_set) - 1)
    return ranks


def join(first: list[VideoQuestion], others: list[VideoQuestion]) -> None:
    """Put the views of `others` behind those of the same videos in `first`.

    Raises
    ------
    FlexSelectError
        If other frames were read, or cut into other tokens.
    """
    for one, other in zip(first, others, strict=True):
        mine, theirs = one.views[0], other.views[0]
        if one.indices != other.indices or mine.kept.shape != theirs.kept.shape:
            shapes = (" x ".join(map(str, view.kept.shape)) for view in (mine, theirs))
            raise FlexSelectError(
                f"{one.title}: {mine.name} and {theirs.name} read other frames ({' and '.join(shapes)} tokens): "
                "give both the same, to compare them"
            )
        one.views += other.views


def thumbnails(path: str, indices: Sequence[int]) -> list[np.ndarray]:
    """The frames at `indices` of a video, ascending: ``(height, width, 3)`` uint8 each, as wide as there is room.

    Raises
    ------
    VideoError
        If the video cannot be read; the message names it.
    """
    widest = next(width for most, width in _WIDTHS if len(indices) <= most)
    return with_video(path, lambda video: [frame for part in _small(video, indices, widest) for frame in part])


def _small(video: VideoFile, indices: Sequence[int], widest: int) -> Iterator[list[np.ndarray]]:
    for part in video.parts(indices):
        height, width = part.shape[1:3]
        size = (widest, max(1, round(height * widest / width))) if width > widest else (width, height)
        yield [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in part.numpy()]
