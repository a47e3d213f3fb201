"""Frames for LLaVA-Video, sampled as lmms-eval's `llava_vid` does: of a video file, or of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmms_flexselect.families.pixels import read_picture, resize_frames
from lmms_flexselect.video.reading import PYAV, Backend, VideoFile, with_video

PICTURES_PER_SECOND = 3  # MVBench's, the one task that has folders of frames


@dataclass
class LlavaClip:
    """What is shown of a video.

    Attributes
    ----------
    frames
        ``(frames, size, size, 3)`` uint8.
    indices
        Which frames of the video, or which pictures.
    seconds
        When they are, as upstream's prompt tells it.
    length
        Of the whole, in seconds.
    fps
        Of the whole.
    decoder
        What read it.
    """

    frames: Tensor
    indices: list[int]
    seconds: list[float]
    length: float
    fps: float
    decoder: str


def sample_frames(
    total: int, fps: float, max_frames: int, frames_per_second: int = 1, force_sample: bool = False
) -> tuple[list[int], list[float]]:
    """Which frames upstream reads, and the seconds at which its prompt says they are.

    One every ``fps / frames_per_second``; or, if these are too many or `force_sample` is set, exactly `max_frames`
    spread over the video. Upstream's seconds are right for one frame a second and for spread frames only; they are
    part of its prompt and are kept, except of videos that upstream cannot read, or of less than a frame a second.
    """
    step = max(1, round(fps / frames_per_second))
    indices = list(range(0, total, step))
    if len(indices) <= max_frames and not force_sample:
        slow = fps < max(1, frames_per_second / 2)
        return indices, [index / (fps if slow else step) for index in indices]
    indices = np.linspace(0, total - 1, max_frames, dtype=int).tolist()
    return indices, [index / fps for index in indices]


def read_llava_video(
    path: str,
    max_frames: int = 512,
    frames_per_second: int = 1,
    force_sample: bool = False,
    backend: Backend = PYAV,
    size: int = 384,
) -> LlavaClip:
    """Frames of a video file, as squares of `size` pixels.

    Parameters
    ----------
    path
        Of the file.
    max_frames, frames_per_second, force_sample
        See `sample_frames`.
    backend
        What decodes.
    size
        Side of the frames, the vision tower's.

    Raises
    ------
    VideoError
        See `with_video`.
    """

    def work(video: VideoFile) -> LlavaClip:
        indices, seconds = sample_frames(video.frames, video.fps, max_frames, frames_per_second, force_sample)
        numbers = video.shown(indices)
        if not video.timeline.constant:
            seconds = video.seconds(numbers)
        frames = video.resized(numbers, lambda part: resize_frames(part, size))
        return LlavaClip(frames, numbers, seconds, video.frames / video.fps, video.fps, video.decoder)

    return with_video(path, work, backend)


def read_pictures(pictures: Sequence[Any], max_frames: int = 512, size: int = 384) -> LlavaClip:
    """Pictures, paths of them or PIL's, as the frames of a video; at most `max_frames`, spread over them.

    Raises
    ------
    VideoError
        If one cannot be read, naming it.
    """
    count, fps = len(pictures), PICTURES_PER_SECOND
    indices = np.linspace(0, count - 1, min(max_frames, count), dtype=int).tolist()
    frames = torch.cat([resize_frames(read_picture(pictures[index])[None], size) for index in indices])
    return LlavaClip(frames, indices, [index / fps for index in indices], count / fps, fps, "image")


def pictures_in(folder: str) -> list[Path]:
    """The files of a folder of frames, by name; hidden ones and folders are none."""
    return sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
