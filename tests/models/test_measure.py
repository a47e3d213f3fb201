"""What is measured of a batch: when its first token was there, and its peak memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import StoppingCriteriaList

from lmms_flexselect.runtime import measure as _measure
from lmms_flexselect.runtime.measure import FirstTokenClock, peak_memory
from tests.support.questions import FAMILIES, Question, family, inputs_of


def test_the_clock_notes_its_first_call_and_stops_nothing(monkeypatch):
    monkeypatch.setattr(_measure, "now", itertools.count(5).__next__)
    clock = FirstTokenClock()
    assert clock.time is None
    for length in (1, 2, 3):
        assert clock(torch.zeros(2, length, dtype=torch.long), None).tolist() == [False, False]
    assert clock.time == 5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_token_is_one_pass_of_the_decoder(name, monkeypatch):
    """Of several tokens: the clock reads the passes that were made, instead of seconds."""
    own, clock = family(name), FirstTokenClock()
    passes: list[int] = []
    monkeypatch.setattr(_measure, "now", lambda: len(passes))
    hook = own.decoder.register_forward_hook(lambda *_: passes.append(1))
    prompts = own.prompts(inputs_of(name, Question((0,), 0)))
    try:
        (new,) = own.generate(
            prompts,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    finally:
        hook.remove()
    assert (len(new), len(passes), clock.time) == (5, 5, 1)


def test_the_peak_is_of_the_block_and_in_gib():
    before = 16 * 2**20
    with peak_memory() as little:
        torch.ones(before, dtype=torch.uint8)
    with peak_memory() as much:
        torch.ones(8 * before, dtype=torch.uint8)
    if torch.cuda.is_available():  # pragma: no cover
        assert little.gib == 0
    else:
        assert much.gib - little.gib == pytest.approx(7 * before / 2**30, abs=0.03)
