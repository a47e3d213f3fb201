"""Frames of a video for families that cut them into patches: which, and in what size, by qwen-vl-utils' rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from qwen_vl_utils.vision_process import (
    FRAME_FACTOR,
    MODEL_SEQ_LEN,
    VIDEO_MAX_TOKEN_NUM,
    VIDEO_MIN_TOKEN_NUM,
    calculate_video_frame_range,
    smart_nframes,
    smart_resize,
)
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from lmms_flexselect.errors import VideoError, first_line
from lmms_flexselect.video.reading import PYAV, Backend, VideoFile, with_video


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are read.

    Attributes
    ----------
    max_frames
        Upper bound.
    fps
        Frames per second wanted; None spreads `max_frames` evenly over the video.
    thin_from_fps
        Some of upstream's simple classes sample at this rate first and then drop every so many frames to meet
        `max_frames`; None samples once.
    """

    max_frames: int
    fps: float | None = None
    thin_from_fps: float | None = None

    def count(self, total: int, video_fps: float) -> int:
        """How many frames to read of a video of `total` frames."""
        if self.thin_from_fps is not None:
            return smart_nframes({"fps": self.thin_from_fps}, total_frames=total, video_fps=video_fps)
        if self.fps is None:
            return max(FRAME_FACTOR, min(self.max_frames, total) // FRAME_FACTOR * FRAME_FACTOR)
        rule = {"fps": self.fps, "max_frames": self.max_frames, "min_frames": min(4, self.max_frames)}
        return smart_nframes(rule, total_frames=total, video_fps=video_fps)

    def thinned(self, indices: list[int]) -> list[int]:
        """The frames that stay of those at `indices`."""
        if self.thin_from_fps is None:
            return indices
        stay = np.unique(np.linspace(0, len(indices) - 1, self.max_frames, dtype=int))
        return [indices[i] for i in stay]


@dataclass
class SampledVideo:
    """Frames of one video.

    Attributes
    ----------
    frames
        ``(frames, 3, height, width)``, resized: float32 in 0..255, or uint8 before they are made that.
    metadata
        What transformers' video processors read: ``fps`` of the file, ``frames_indices``, ``total_num_frames``,
        ``video_backend``.
    """

    frames: Tensor
    metadata: dict[str, Any]


def read_video(
    element: dict[str, Any], sampling: FrameSampling, patch: int = 14, backend: Backend = PYAV
) -> SampledVideo:
    """`read_video_bytes` with float32 frames, as qwen-vl-utils hands them over."""
    video = read_video_bytes(element, sampling, patch, backend)
    return SampledVideo(video.frames.float(), video.metadata)


def read_video_bytes(
    element: dict[str, Any], sampling: FrameSampling, patch: int = 14, backend: Backend = PYAV
) -> SampledVideo:
    """Decode, sample and resize the video of one chat-message element; frames are uint8.

    Parameters
    ----------
    element
        ``{"video": path, "min_pixels": …, "max_pixels": …, "total_pixels": …, "video_start": …, "video_end": …}``;
        all but the path optional; start and end in seconds.
    sampling
        Which frames.
    patch
        Side of the vision tower's patches in pixels; frames become multiples of twice that.
    backend
        What decodes.

    Raises
    ------
    VideoError
        See `with_video`.
    """

    def work(video: VideoFile) -> SampledVideo:
        frames, metadata, sampled = _sample(video, element, sampling)

        def resized(part: Tensor) -> Tensor:
            try:
                return resize_frames(part.permute(0, 3, 1, 2), element, sampled, patch)
            except (ValueError, AssertionError) as error:
                raise VideoError(f"{video.path}: {first_line(error)}") from None

        return SampledVideo(video.resized(frames, resized), metadata)

    return with_video(str(element["video"]).removeprefix("file://"), work, backend)


def resize_frames(frames: Tensor, element: Mapping[str, Any], count: int, patch: int = 14) -> Tensor:
    """Frames ``(frames, 3, height, width)`` uint8 of a video of `count`, in the size that is read.

    `element` may hold ``min_pixels`` and ``max_pixels`` of a frame and ``total_pixels`` of the video.
    """
    size = _target_size(element, count, frames.shape[-2:], patch * 2)
    if min(size) < 1:
        height, width = frames.shape[-2:]
        raise ValueError(f"frames of {width} x {height} pixels are too narrow to be shrunk to max_pixels")
    return resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _sample(
    video: VideoFile, element: dict[str, Any], sampling: FrameSampling
) -> tuple[list[int], dict[str, Any], int]:
    """Which frames; what transformers wants to know of them; and how many were sampled before thinning.

    The rules are upstream's, which count frames of a constant rate; of a variable one they say at which instants a
    frame is wanted.
    """
    try:
        first, last, span = calculate_video_frame_range(element, video.frames, video.fps)
        count = sampling.count(span, video.fps)
        sampled = torch.linspace(first, last, count).round().long().tolist()
        frames = video.shown(sampling.thinned(sampled))
    except ValueError as error:
        raise VideoError(f"{video.path}: {first_line(error)}") from None
    metadata = {"fps": video.fps, "frames_indices": frames, "total_num_frames": span, "video_backend": video.decoder}
    return frames, metadata, len(sampled)


def _target_size(element: Mapping[str, Any], num_frames: int, size: torch.Size, factor: int) -> tuple[int, int]:
    """qwen-vl-utils' rule: a frame's own pixel bounds, within an even share of a context-sized pixel budget."""
    lowest = element.get("min_pixels", VIDEO_MIN_TOKEN_NUM * factor**2)
    share = element.get("total_pixels", MODEL_SEQ_LEN * factor**2 * 0.9) / num_frames * FRAME_FACTOR
    highest = max(min(VIDEO_MAX_TOKEN_NUM * factor**2, share), int(lowest * 1.05))
    highest = min(element.get("max_pixels", highest), highest)
    return smart_resize(size[0], size[1], factor=factor, min_pixels=lowest, max_pixels=highest)
