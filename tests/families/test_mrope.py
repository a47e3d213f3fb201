"""Multimodal positions against the published rule, counted out token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lmms_flexselect.families.mrope import VisionBlock, compact_blocks, published_positions
from tests.support import oracle
from tests.support.random_models import Part

PROMPTS: dict[str, tuple[list[Part], list[float]]] = {
    "text only": ([9], []),
    "video, text after": ([("video", (4, 2, 3)), 5], [2.0]),
    "text before, nothing after": ([3, ("video", (4, 2, 3))], [2.0]),
    "text around": ([3, ("video", (5, 3, 2)), 4], [2.0]),
    "long steps": ([1, ("video", (6, 2, 2)), 4], [64.0]),
    # The frame is larger than the video is long: the text goes on from its width.
    "one wide unit": ([2, ("video", (1, 2, 9)), 3], [2.0]),
    "steps below one": ([2, ("video", (9, 2, 2)), 3], [0.375]),
    "image": ([2, ("image", (1, 4, 3)), 3], []),
    "image and video": ([2, ("image", (1, 4, 3)), 3, ("video", (3, 2, 2)), 2], [3.0]),
    "video and image": ([2, ("video", (3, 2, 2)), 1, ("image", (1, 4, 3)), 3], [3.0]),
    "two videos": ([2, ("video", (3, 2, 2)), 4, ("video", (5, 1, 3)), 3], [3.0, 0.75]),
    "neighbours": ([1, ("video", (3, 2, 2)), ("image", (1, 2, 2)), ("video", (2, 2, 2)), 1], [1.0, 2.5]),
}


def blocks_of(parts, steps):
    blocks, column, step_of_video = [], 0, iter(steps)
    for part in parts:
        if isinstance(part, int):
            column += part
            continue
        kind, grid = part
        columns = torch.arange(column, column + math.prod(grid))
        blocks.append(VisionBlock(columns, grid, next(step_of_video) if kind == "video" else 1.0, kind == "video"))
        column += len(columns)
    return blocks, column


@pytest.mark.parametrize("name", PROMPTS)
def test_published_rule(name):
    parts, steps = PROMPTS[name]
    blocks, tokens = blocks_of(parts, steps)
    positions = published_positions(tokens, blocks)
    assert positions.dtype == torch.int64
    assert [tuple(p) for p in positions.T.tolist()] == oracle.mrope(parts, steps)


def test_fractions_of_a_step_add_up():
    """0.75 positions a unit: floored after multiplying, so four units make three positions."""
    blocks, tokens = blocks_of([("video", (9, 1, 1))], [0.75])
    assert published_positions(tokens, blocks)[0].tolist() == [0, 0, 1, 2, 3, 3, 4, 5, 6]


@pytest.mark.parametrize("seconds", [0.13, 0.29, 1 / 3, 0.7, 1.1, 2.0021])
def test_products_are_rounded_as_the_model_was_trained(seconds):
    """In float32: 50 units of 0.29 s are at position 29 there, and at 28 in float64."""
    blocks, tokens = blocks_of([("video", (512, 1, 1))], [2 * seconds])
    steps = np.arange(512, dtype=np.float32) * np.float32(2 * seconds)
    assert published_positions(tokens, blocks)[0].tolist() == np.floor(steps).astype(int).tolist()


@pytest.mark.parametrize("frames", [[0, 2, 4], [1, 3], [4], list(range(5))])
def test_a_frame_set_closes_up_in_time(frames):
    """The set's own prompt: its frames as if they were the whole video; text, images and other blocks stay."""
    parts: list[Part] = [2, ("image", (1, 2, 3)), 1, ("video", (5, 2, 3)), 4]
    blocks, tokens = blocks_of(parts, [0.5])
    frame = torch.full((tokens,), -1)
    frame[blocks[1].columns] = torch.arange(5).repeat_interleave(6)
    present = (frame < 0) | torch.isin(frame, torch.tensor(frames))
    compacted = compact_blocks(blocks, frame, present, 2.0)
    actual = published_positions(int(present.sum()), compacted)
    alone: list[Part] = [2, ("image", (1, 2, 3)), 1, ("video", (len(frames), 2, 3)), 4]
    assert [tuple(p) for p in actual.T.tolist()] == oracle.mrope(alone, [2.0])


def test_a_video_that_is_left_out_takes_no_positions():
    parts: list[Part] = [2, ("video", (3, 2, 2)), 4, ("video", (5, 1, 3)), 3]
    blocks, tokens = blocks_of(parts, [3.0, 3.0])
    frame = torch.full((tokens,), -1)
    for block in blocks:
        frame[block.columns] = torch.arange(block.grid[0]).repeat_interleave(block.grid[1] * block.grid[2])
    present = torch.ones(tokens, dtype=torch.bool)
    present[blocks[0].columns] = False
    actual = published_positions(int(present.sum()), compact_blocks(blocks, frame, present, 2.0))
    assert [tuple(p) for p in actual.T.tolist()] == oracle.mrope([6, ("video", (5, 1, 3)), 3], [2.0])
