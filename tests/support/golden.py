"""Golden vectors made with the authors' implementation: where they lie, and how a selection is held to them.

Their folder lies beside the repository (``../shared/golden``, or ``FLEXSELECT_GOLDEN``) and is not part of it. Every
number is read from its files, so that one made with another seed, other lengths and other budgets does as well.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from lmms_flexselect import FlexSelect
from lmms_flexselect.method.flexselect import Selection
from lmms_flexselect.method.prompt import VideoPrompt

GOLDEN = Path(os.environ.get("FLEXSELECT_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
REDUCTIONS = {"max": "", "mean": "mean_"}  # and the prefix of their arrays' names
Vectors = Mapping[str, Any]


def needs(*folders: str) -> pytest.MarkDecorator:
    """Skips a test, and says so, where one of these folders or files of the vectors is absent."""
    absent = [str(GOLDEN / folder) for folder in folders if not (GOLDEN / folder).exists()]
    return pytest.mark.skipif(bool(absent), reason=f"golden vectors are absent: {', '.join(absent)}")


def vectors(family: str, name: str) -> Vectors:
    """The arrays of one file."""
    with np.load(GOLDEN / family / f"{name}.npz") as stored:
        return dict(stored)


def short_cases(family: str) -> list[str]:
    """The names of the edge cases with short videos; none where the file is absent."""
    if not (GOLDEN / family / "golden_short.npz").is_file():
        return []
    return [name.removesuffix("_num_frames") for name in vectors(family, "golden_short") if "_num_frames" in name]


def close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Equal but for an absolute `tolerance`."""
    torch.testing.assert_close(actual.detach(), torch.from_numpy(expected), rtol=0, atol=tolerance)


def thinned(actual: Tensor, stored: np.ndarray, axis: int = 0) -> Tensor:
    """Every n-th entry along an axis: some arrays are stored so."""
    step = -(-actual.shape[axis] // stored.shape[axis])
    return actual.index_select(axis, torch.arange(0, actual.shape[axis], step))


def check_selection(
    family: Any, prompt: VideoPrompt, selector: Any, golden: Vectors, prefix: str, shared: Vectors | None = None
) -> Selection:
    """Hold frame sets, scores, kept tokens, the shortened prompt and the model's answer to the vectors.

    Parameters
    ----------
    family, prompt, selector
        The family, without an end of sequence; its full prompt; what scores it.
    golden, prefix
        Arrays, and what their names begin with: of the reduction or of the edge case.
    shared
        Arrays with what all runs have in common, where `golden` does not have it.
    """
    shared = golden if shared is None else shared
    of_case = prefix.removeprefix(REDUCTIONS["mean"])
    budget, at_most = int(golden[f"{of_case}budget"]), int(shared["max_frames_per_group"])
    select = FlexSelect(selector, budget, at_most, budget_remainder="drop", round_budget=family.round_budget)
    selection = select(prompt)
    expected = golden[f"{prefix}selected_indices"]
    expected = expected.nonzero()[0] if expected.dtype == bool else expected
    assert selection.visual_kept.nonzero().squeeze(-1).tolist() == expected.tolist()
    assert selection.visual_tokens == int(shared["tokens_per_frame"]) * (int(selection.visual_frame.max()) + 1)
    sets = list(itertools.takewhile(lambda n: f"{prefix}scores_set{n}" in golden, itertools.count()))
    assert len(sets) in (0, int(selection.frame_set.max()) + 1)
    for number in sets:
        members = selection.frame_set == number
        frames = selection.visual_frame[members]
        assert frames.unique().tolist() == golden[f"{of_case}frames_set{number}"].tolist()
        got, want = selection.scores[members], torch.from_numpy(golden[f"{prefix}scores_set{number}"])
        # The vectors are float32 too: they lie up to 1.0e-5 (as a set) and 9e-5 (singly) off a float64 run of the same
        # model on some processors, our scores 3.6e-6 as a set.
        assert float((got - want).norm() / want.norm()) < 2e-5
        torch.testing.assert_close(got, want, rtol=1.5e-4, atol=0)
    if not sets:
        assert bool(selection.visual_kept.all())
    final = selection.prompt
    np.testing.assert_array_equal(final.position_ids, golden[f"{prefix}final_position_ids"].reshape(-1, len(final)))
    embeds = golden[f"{prefix}final_inputs_embeds"][0]
    close(thinned(final.inputs_embeds, embeds), embeds, 1e-5)
    check_answer(family, final, golden, prefix)
    return selection


def check_answer(family: Any, prompt: VideoPrompt, golden: Vectors, prefix: str) -> None:
    """Hold the logits of each step and the greedy answer to the vectors."""
    logits: list[Tensor] = []

    def note(_: Tensor, scores: Tensor) -> Tensor:
        logits.append(scores[0].clone())
        return scores

    answer = golden[f"{prefix}greedy_ids"].tolist()
    (new,) = family.generate(
        [prompt],
        max_new_tokens=len(answer),
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([note]),
    )
    close(logits[0], golden[f"{prefix}first_token_logits"], 1e-4)
    if (every := golden.get(f"{prefix}all_step_logits")) is not None:
        close(torch.stack(logits), every, 1e-4)
    assert new.tolist() == answer
