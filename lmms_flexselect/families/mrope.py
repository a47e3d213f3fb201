"""Multimodal rotary positions, by the published rule.

transformers' own `get_rope_index` changed between releases, at times putting the text inside the video's range of
positions; so the rule is computed here and passed in. Text counts up on all three axes (time, height, width); a
vision block starts where the text stopped and counts by its grid; text after it goes on from the block's largest
position on any axis, plus one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ROPE_RULES = ("published", "library")


@dataclass
class VisionBlock:
    """One image or video in the token sequence.

    Attributes
    ----------
    columns
        ``(tokens,)`` int64, where its tokens stand, in grid order (time, height, width; width fastest).
    grid
        Merged grid ``(time, height, width)``: time in temporal units, height and width in tokens.
    step
        Positions per temporal unit: ``tokens_per_second * seconds per unit`` for a video, 1 for an image.
    is_video
        Whether selection may drop its tokens.
    video, unit
        Of a video: which one, and which of its temporal units the block begins with.
    """

    columns: Tensor
    grid: tuple[int, int, int]
    step: float
    is_video: bool
    video: int = 0
    unit: int = 0


def published_positions(num_tokens: int, blocks: list[VisionBlock]) -> Tensor:
    """Positions of a prompt: ``(3, num_tokens)`` int64.

    A temporal unit ``t`` of a block that starts at position ``p`` is at ``p + floor(t * step)``: whole numbers after
    the multiplication, so fractions of a second add up.

    Parameters
    ----------
    num_tokens
        Length of the prompt.
    blocks
        Its vision blocks, in order.
    """
    device = blocks[0].columns.device if blocks else None
    positions = torch.empty(3, num_tokens, dtype=torch.int64, device=device)
    column, position = 0, 0
    for block in blocks:
        if not len(block.columns):
            continue
        start = int(block.columns[0])
        positions[:, column:start] = torch.arange(position, position + start - column, device=device)
        position += start - column
        time, height, width = block.grid
        t = (torch.arange(time, device=device) * block.step).long()
        rows, cols = torch.arange(height, device=device), torch.arange(width, device=device)
        own = torch.stack(torch.meshgrid(t, rows, cols, indexing="ij")).flatten(1) + position
        positions[:, block.columns] = own
        column, position = int(block.columns[-1]) + 1, int(own.max()) + 1
    positions[:, column:] = torch.arange(position, position + num_tokens - column, device=device)
    return positions


def compact_blocks(blocks: list[VisionBlock], frame: Tensor, present: Tensor, step: float) -> list[VisionBlock]:
    """The blocks of a prompt made of the tokens in `present` alone, as if it had been sampled that way.

    Videos close up in time (frame numbers 3, 11, 19 become 0, 1, 2) and count `step` positions a unit; images stay.

    Parameters
    ----------
    blocks
        Of the full prompt.
    frame
        ``(tokens,)`` int64, the temporal unit of each visual token.
    present
        ``(tokens,)`` bool; holds whole frames.
    step
        Positions per temporal unit of a video.
    """
    place = present.cumsum(0) - 1
    compacted = []
    for block in blocks:
        columns = block.columns[present[block.columns]]
        _, height, width = block.grid
        units = len(frame[columns].unique()) if block.is_video else block.grid[0]
        own_step = step if block.is_video else block.step
        compacted.append(replace(block, columns=place[columns], grid=(units, height, width), step=own_step))
    return compacted


def with_mrope_section(words: dict[str, Any]) -> None:
    """Add to a selector's configuration the split of half a head's width between time, height and width.

    It is that of the models in whose prompts the selector reads, 16, 24 and 24 of 64; a text model does not have it.
    """
    half = words["hidden_size"] // words["num_attention_heads"] // 2
    time = half // 4
    height = (half - time) // 2
    words.setdefault("rope_scaling", {"type": "mrope", "mrope_section": [time, height, half - time - height]})
