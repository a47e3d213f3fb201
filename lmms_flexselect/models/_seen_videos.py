"""Questions about a video whose visual tokens are kept: the processor's inputs without its pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature

from lmms_flexselect.video_key import VideoKey


@dataclass
class SeenVideo:
    """What a Qwen processor made of a video, but for its pixels.

    Attributes
    ----------
    metadata
        What it was told of it.
    grid
        Time, height and width in patches.
    seconds_per_unit
        Between temporal units, as the processor has it; None if it does not say.
    """

    metadata: dict[str, Any]
    grid: list[int]
    seconds_per_unit: float | None


def seen_in(
    inputs: Any, keys: Sequence[VideoKey | None], metadata: Sequence[dict[str, Any]]
) -> dict[VideoKey, SeenVideo]:
    """The videos of a batch that the processor has made `inputs` of."""
    grids, seconds = inputs.get("video_grid_thw"), inputs.get("second_per_grid_ts")
    if grids is None:
        return {}
    return {
        key: SeenVideo(told, grids[n].tolist(), None if seconds is None else float(seconds[n]))
        for n, (key, told) in enumerate(zip(keys, metadata, strict=True))
        if key is not None
    }


Spell = Callable[[Any, str, Sequence[SeenVideo]], str]
"""Of the processor, a rendered prompt and the videos in it: the prompt with all their tokens spelled out."""


def repeated_placeholder(processor: Any, text: str, seen: Sequence[SeenVideo]) -> str:
    """A prompt in which each video is as many placeholders as it has visual tokens."""
    token, merge = processor.video_token, processor.video_processor.merge_size
    counts = iter([math.prod(video.grid) // merge**2 for video in seen])
    return re.sub(re.escape(token), lambda _: token * next(counts), text)


def inputs_without_pixels(
    processor: Any, seen: Sequence[SeenVideo], spell: Spell, text: Sequence[str], **kwargs: Any
) -> BatchFeature:
    """What the processor makes of texts about these videos, in their order, and that their pixels are left out.

    The processor itself refuses texts without their videos. `kwargs` are its own that say how texts are padded.
    """
    waiting = iter(seen)
    spelled = [spell(processor, one, [next(waiting) for _ in range(one.count(processor.video_token))]) for one in text]
    inputs = BatchFeature(dict(processor.tokenizer(spelled, **kwargs)))
    inputs["video_grid_thw"] = torch.tensor([video.grid for video in seen])
    if all(video.seconds_per_unit is not None for video in seen):
        inputs["second_per_grid_ts"] = [video.seconds_per_unit for video in seen]
    inputs["left_out"] = [True] * len(seen)
    return inputs
