"""Frames as the vision towers of LLaVA-Video and InternVL were trained on them: PIL's bicubic squares, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
