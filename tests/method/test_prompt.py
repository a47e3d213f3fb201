"""`VideoPrompt` by itself: masks, queries, and what stays when tokens are dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmms_flexselect.method.prompt import VideoPrompt, passing_extras

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


def with_extras(prompt):
    extras = {"level": torch.arange(len(prompt) * 2.0).view(-1, 2), "seen": prompt.visual}
    return replace(
        prompt, extras=extras, decoder_arguments=lambda batch: {"added": batch["level"] * 2, "seen": batch["seen"]}
    )


def test_extras_go_where_their_tokens_go(prompt):
    prompt = with_extras(prompt)
    columns = torch.tensor([[8, 1, 2], [0, 0, 4]])
    embeds, arguments = prompt.decoder_inputs(columns)
    assert torch.equal(embeds, prompt.inputs_embeds[columns])
    assert torch.equal(arguments["added"], prompt.extras["level"][columns] * 2)
    assert torch.equal(arguments["seen"], prompt.visual[columns])
    mask = prompt.input_ids % 3 == 0
    shorter = prompt.keep(mask)
    assert torch.equal(shorter.extras["level"], prompt.extras["level"][mask])
    assert torch.equal(shorter.extras["seen"], prompt.visual[mask])


def test_extras_of_a_batch_are_passed_once_and_for_every_beam(prompt):
    class Decoder(torch.nn.Module):
        def forward(self, inputs_embeds, **arguments):
            return arguments

    long = with_extras(prompt)
    short, decoder = long.keep(long.visual), Decoder()
    with passing_extras(decoder, [short, long]):
        first = decoder(inputs_embeds=torch.zeros(4, 10, 3))
        later = decoder(inputs_embeds=torch.zeros(4, 1, 3))
    assert later == {} == decoder(inputs_embeds=torch.zeros(1))
    padded = torch.cat([torch.zeros(5, 2), short.extras["level"]])
    assert torch.equal(first["added"], 2 * torch.stack([padded, padded, long.extras["level"], long.extras["level"]]))
    with pytest.raises(KeyError), passing_extras(decoder, [long]):
        raise KeyError
    assert decoder(inputs_embeds=torch.zeros(1)) == {}


def test_prompts_with_and_without_extras_go_together(prompt):
    class Decoder(torch.nn.Module):
        def forward(self, inputs_embeds, **arguments):
            return arguments

    decoder, some = Decoder(), with_extras(prompt)
    with passing_extras(decoder, [prompt, some]):
        got = decoder(inputs_embeds=torch.zeros(2, 10, 3))
    assert torch.equal(got["added"], torch.stack([torch.zeros(10, 2), some.extras["level"] * 2]))
    assert torch.equal(got["seen"], torch.stack([torch.zeros(10, dtype=torch.bool), prompt.visual]))


def test_a_prompt_without_extras_passes_nothing(prompt):
    assert prompt.decoder_inputs(torch.tensor([[1, 2]]))[1] == {}
