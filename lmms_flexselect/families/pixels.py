"""Pictures and frames through PIL: read, resized, and normalised for vision towers that read bicubic squares."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from lmms_flexselect.errors import VideoError, first_line

_OPENING = threading.Lock()  # a setting of all threads is changed for each picture


def resize_frames(frames: Tensor, size: int) -> Tensor:
    """Frames ``(frames, height, width, 3)`` uint8 as squares of `size` pixels."""
    if frames.shape[1:3] == (size, size):
        return frames
    images = (Image.fromarray(frame.numpy()).resize((size, size), Image.Resampling.BICUBIC) for frame in frames)
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def stretched(picture: Tensor, size: Sequence[int]) -> Tensor:
    """A picture ``(height, width, 3)`` uint8 in another height and width."""
    resized = Image.fromarray(picture.numpy()).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def normalised(frames: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What a tower reads: ``(frames, height, width, 3)`` uint8 to ``(frames, 3, size, size)`` float32.

    `mean` and `std` are those of each colour, of values in 0..1.
    """
    pixels = resize_frames(frames, size).permute(0, 3, 1, 2).float() * (1 / 255)
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


def is_path(visual: Any) -> bool:
    """Whether what is to be looked at is given by where it lies."""
    return isinstance(visual, (str, os.PathLike))


def read_picture(picture: Any) -> Tensor:
    """A picture, its path or PIL's: ``(height, width, 3)`` uint8.

    Raises
    ------
    VideoError
        If it cannot be read, naming it.
    """
    name = str(picture) if is_path(picture) else "an image"
    with _OPENING:
        tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval fills up cut ones
        try:
            opened = Image.open(picture) if is_path(picture) else picture
            return torch.from_numpy(np.array(opened.convert("RGB")))
        except Exception as error:
            reason = first_line(error).replace(f" {name!r}", "")
            raise VideoError(f"{name}: not a readable image ({reason})") from None
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
