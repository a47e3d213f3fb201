"""`VideoPrompt` by itself: masks, queries, and what stays when tokens are dropped."""

from __future__ import annotations

import pytest
import torch

from lmms_flexselect.prompt import VideoPrompt

# text, two frames of two tokens with text between them, text, another video of one token, text
VIDEO = [-1, 0, 0, -1, 0, 0, -1, 1, -1, -1]
FRAME = [-1, 0, 0, -1, 1, 1, -1, 0, -1, -1]


@pytest.fixture
def prompt():
    tokens = len(VIDEO)
    return VideoPrompt(
        input_ids=torch.arange(tokens) + 100,
        inputs_embeds=torch.arange(tokens * 3.0).view(tokens, 3),
        position_ids=torch.stack([torch.arange(tokens) * factor for factor in (1, 2, 3)]),
        video=torch.tensor(VIDEO),
        frame=torch.tensor(FRAME),
        grids=[(2, 1, 2), (1, 1, 1)],
        compact_positions=lambda present: torch.zeros(3, int(present.sum())),
    )


def test_what_it_says_of_itself(prompt):
    assert len(prompt) == 10
    assert prompt.num_videos == 2
    assert prompt.visual.tolist() == [v >= 0 for v in VIDEO]


def test_queries_are_all_that_follows_the_last_visual_token(prompt):
    assert prompt.query_columns.tolist() == [8, 9]


def test_keeping_tokens_keeps_their_places(prompt):
    stay = [0, 2, 3, 6, 7, 8, 9]
    mask = torch.zeros(10, dtype=torch.bool)
    mask[stay] = True
    shorter = prompt.keep(mask)
    assert shorter.input_ids.tolist() == [100 + i for i in stay]
    assert shorter.position_ids.tolist() == [[i * factor for i in stay] for factor in (1, 2, 3)]
    assert shorter.inputs_embeds.tolist() == [[3.0 * i, 3.0 * i + 1, 3.0 * i + 2] for i in stay]
    assert shorter.video.tolist() == [VIDEO[i] for i in stay]
    assert shorter.frame.tolist() == [FRAME[i] for i in stay]
    # The shape of the full video stays known, but a shortened prompt cannot be scored again.
    assert shorter.grids == prompt.grids
    assert shorter.compact_positions is None
    assert len(prompt) == 10
    assert prompt.compact_positions is not None


def test_a_prompt_without_videos(prompt):
    text = prompt.keep(~prompt.visual)
    assert text.num_videos == 0
    assert not text.visual.any()
