"""From a video and a question to what a family's `prompts` takes, outside of lmms-eval's loop.

Training, analysis and pictures read videos this way. Each family names its class (`FamilySpec.reader`), which has
``load(pretrained, dtype, frames, init, **kwargs)`` beside what `Reader` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lmms_flexselect.families import spec


class Reader(Protocol):
    """Reads as one loaded model does.

    Attributes
    ----------
    family
        How the model is read.
    tokenizer
        The FlexSelect-Lite selector's own, where it needs one.
    frames_per_unit
        See `FamilySpec`.
    """

    family: Any
    tokenizer: Any
    frames_per_unit: int

    def read(self, video: str, question: str, answer: str) -> Mapping[str, Any]:
        """What the family's `prompts` takes, a batch of one; an empty answer is one still to be given.

        Raises
        ------
        VideoError
            If the video cannot be read; the message names the file.
        """
        ...

    def of_frames(self, frames: Tensor, question: str) -> Mapping[str, Any]:
        """The same of frames ``(units * frames_per_unit, height, width, 3)`` uint8 of any size, unanswered."""
        ...


def load_reader(
    family: str, pretrained: str, dtype: torch.dtype, frames: int, init: str | None = None, **kwargs: Any
) -> Reader:
    """A family's reader, with the model of a checkpoint.

    Parameters
    ----------
    family
        Its name.
    pretrained
        Folder or hub name.
    dtype
        Of the weights.
    frames
        How many units it reads of a video.
    init
        What a FlexSelect-Lite selector starts from, whose tokenizer is read too where a family's selectors have one.
    kwargs
        For transformers' ``from_pretrained``.

    Raises
    ------
    OptionError
        If there is no such family, or the checkpoint cannot be read.
    """
    return spec.load(spec.family(family).reader).load(pretrained, dtype, frames, init, **kwargs)
