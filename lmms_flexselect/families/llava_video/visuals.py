"""What upstream's LLaVA loop passes along as "video": frames, or why there are none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.families.llava_video.frames import (
    PICTURES_PER_SECOND,
    LlavaClip,
    pictures_in,
    read_llava_video,
    read_pictures,
)
from lmms_flexselect.families.pixels import is_path
from lmms_flexselect.models.reading import Frames
from lmms_flexselect.models.records import PreparedRow
from lmms_flexselect.video.file import file_complaint
from lmms_flexselect.video.key import VideoKey, video_key
from lmms_flexselect.video.reading import Backend, check_video

_NO_FRAMES = "the folder of frames is empty"


@dataclass
class LlavaFrames:
    """The frames of one question's video.

    Upstream hands them on by ``.to(device)`` and ``.half()`` or ``.bfloat16()``; they stay bytes until the vision tower
    reads them, chunk by chunk.

    Attributes
    ----------
    frames
        ``(frames, size, size, 3)`` uint8.
    row
        What goes into the records.
    failure
        What went wrong while reading. Upstream would turn an exception into an answer, so it travels here until the
        model is asked.
    key
        What the video was read by; None if it is none of the kind.
    """

    frames: Tensor = field(default_factory=lambda: torch.empty(0, 1, 1, 3, dtype=torch.uint8))
    row: PreparedRow = field(default_factory=PreparedRow)
    failure: Exception | None = None
    key: VideoKey | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, *args: Any, **kwargs: Any) -> LlavaFrames:
        """Unchanged."""
        return self

    half = bfloat16 = to


class VisualSource(str):
    """What a question is about, as the one string that upstream expects: its first path.

    A folder's has ``/*`` behind it, or upstream would list the folder itself, unsorted.

    Attributes
    ----------
    visuals
        What the task gave: the path of a video or of a folder of frames, or several images or paths of them.
    question
        What is asked.
    """

    visuals: list[Any]
    question: str

    @classmethod
    def of(cls, visuals: list[Any], question: str) -> VisualSource:
        """Check what a task gives for one question.

        Raises
        ------
        FlexSelectError
            If there is nothing to look at, or several videos.
        """
        if not visuals:
            raise FlexSelectError(f"llava_vid answers questions about a video, and there is none with: {question!r}")
        paths = [visual for visual in visuals if is_path(visual)]
        pictures = [path for path in paths if Path(path).suffix.lower() in Image.registered_extensions()]
        if len(visuals) > 1 and len(pictures) != len(paths):
            raise FlexSelectError(f"llava_vid reads one video a question; this one has {len(visuals)}: {paths}")
        name = str(paths[0]) if paths else "images"
        source = cls(f"{name}/*" if os.path.isdir(name) else name)
        source.visuals, source.question = visuals, question
        return source


def check_frames(path: str, timeout: float) -> tuple[int, float]:
    """`check_video` of what may also be a folder of frames, or one picture of several.

    Raises
    ------
    VideoError
        If it is seen to be unreadable.
    """
    if Path(path).suffix.lower() in Image.registered_extensions():
        if complaint := file_complaint(path):
            raise VideoError(f"{path}: {complaint}")
        return 1, PICTURES_PER_SECOND
    if not os.path.isdir(path):
        return check_video(path, timeout)
    if not (pictures := pictures_in(path)):
        raise VideoError(f"{path}: {_NO_FRAMES}")
    return len(pictures), PICTURES_PER_SECOND


def visuals_key(visuals: Sequence[Any], *how: Any) -> VideoKey | None:
    """What a question's video is read by; None unless it is one file or folder. `how` is `read_clip`'s."""
    return video_key(str(visuals[0]), *how) if len(visuals) == 1 and is_path(visuals[0]) else None


def read_key(key: VideoKey) -> LlavaClip:
    """The frames that a `visuals_key` stands for."""
    return read_clip([key.path], *key.reading)  # type: ignore[arg-type]


def read_clip(
    visuals: Sequence[Any], max_frames: int, frames_per_second: int, force_sample: bool, backend: Backend, size: int
) -> LlavaClip:
    """Frames of a question's video or pictures, squares of `size` pixels.

    Raises
    ------
    VideoError
        If they cannot be read; the message names the file.
    """
    first = visuals[0]
    if is_path(first) and os.path.isdir(first):
        if not (pictures := pictures_in(str(first))):
            raise VideoError(f"{first}: {_NO_FRAMES}")
        return read_pictures(pictures, max_frames, size)
    if len(visuals) > 1 or not is_path(first):
        return read_pictures(visuals, max_frames, size)
    if backend.decoder == "image":
        raise VideoError(f"{first}: with video_decode_backend=image a folder of frames is read, and this is none")
    return read_llava_video(str(first), max_frames, frames_per_second, force_sample, backend, size)


def read_frames(
    source: VisualSource,
    max_frames: int,
    frames_per_second: int,
    force_sample: bool,
    backend: Backend,
    size: int,
    ahead: Frames[LlavaClip] | None = None,
) -> tuple[LlavaFrames, str, float]:
    """What upstream's `load_video` returns: `LlavaFrames`, their seconds as text, and the length in seconds.

    Raises
    ------
    VideoError
        If they cannot be read; the message names the file.
    """
    how = (max_frames, frames_per_second, force_sample, backend, size)
    key = visuals_key(source.visuals, *how)
    clip = read_clip(source.visuals, *how) if ahead is None or key is None else ahead.get(key)
    path = str(source.visuals[0]) if is_path(source.visuals[0]) else "images"
    metadata = {"path": path, "fps": clip.fps, "frames_indices": clip.indices, "video_backend": clip.decoder}
    seconds = ",".join(f"{second:.2f}s" for second in clip.seconds)
    return LlavaFrames(clip.frames, PreparedRow(source.question, [metadata]), key=key), seconds, clip.length
