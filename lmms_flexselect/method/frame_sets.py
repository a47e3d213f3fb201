"""Interleaved partition of a video's frames into frame sets (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError


def interleaved_frame_sets(num_frames: int, max_frames_per_set: int = 64) -> list[Tensor]:
    """Deal frames out like cards, so that every set spans the whole video.

    With ``G = ceil(num_frames / max_frames_per_set)``, set ``g`` holds the frames ``g, g + G, g + 2G, …``. Sizes differ
    by one frame at most.

    Parameters
    ----------
    num_frames
        Frames of one video. A *frame* is the family's unit: one image, or the raw frames that its tower merges in
        time.
    max_frames_per_set
        Upper bound of a set's size; 64 in the paper.

    Returns
    -------
    list of Tensor
        ``G`` tensors of frame numbers, each ``(frames of the set,)`` int64, ascending. Together they hold every frame
        once.

    Raises
    ------
    OptionError
        If either argument is less than 1.
    """
    if num_frames < 1:
        raise OptionError(f"num_frames={num_frames}: a video has at least 1 frame")
    if max_frames_per_set < 1:
        raise OptionError(f"max_frames_per_set={max_frames_per_set}: must be at least 1")
    num_sets = -(-num_frames // max_frames_per_set)
    return [torch.arange(start, num_frames, num_sets) for start in range(num_sets)]
