"""InternVL2.5 against vectors made with the reference implementation, where they are present.

Their folder lies beside the repository (`../shared/golden/internvl2_5`, or `FLEXSELECT_GOLDEN`); it is not part of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms_flexselect import FlexSelect
from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.prompt import END, START, SYSTEM_MESSAGE, VIDEO_MARK, spell_out
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer
from lmms_flexselect.families.pixels import normalised

GOLDEN = Path(os.environ.get("FLEXSELECT_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "internvl2_5"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors in {GOLDEN}")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def family():
    model = load_model(str(GOLDEN / "model"), torch.float32, attn_implementation="sdpa").eval()
    tokenizer = load_tokenizer(str(GOLDEN / "model"))
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    return InternVL(model, (start, end)), tokenizer


@pytest.fixture(scope="module")
def reference():
    return np.load(GOLDEN / "golden_reference.npz")


@pytest.fixture(scope="module")
def pixels(reference):
    return normalised(torch.from_numpy(reference["frames_uint8"]), 448, **IMAGENET)


def prompt_of(family, tokenizer, question, pixels):
    text = chatml([("user", f"{VIDEO_MARK}\n{question}"), ("assistant", None)], SYSTEM_MESSAGE)
    tokens = spell_out(text, [], [len(pixels)], tokenizer, 256, "bare")
    inputs = {"input_ids": tokens.ids, "token_video": tokens.video, "token_frame": tokens.frame}
    (prompt,) = family.prompts({name: ids[None] for name, ids in inputs.items()} | {"pixel_values": pixels})
    return prompt


def check(family, prompt, golden, prefix, budget, reduction):
    np.testing.assert_array_equal(prompt.input_ids[None], golden[f"{prefix.removeprefix('mean_')}input_ids"])
    select = FlexSelect(family.reference_layer(2, reduction), budget, budget_remainder="drop", round_budget=False)
    selection = select(prompt)
    kept = selection.visual_kept.nonzero().squeeze(-1).numpy()
    expected = golden[f"{prefix}selected_indices"]
    np.testing.assert_array_equal(kept, expected.nonzero()[0] if expected.dtype == bool else expected)
    number = 0
    while f"{prefix}frames_set{number}" in golden:
        of_set = np.isin(selection.visual_frame.numpy(), golden[f"{prefix}frames_set{number}"])
        got, want = selection.scores.numpy()[of_set], golden[f"{prefix}scores_set{number}"]
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
        number += 1
    np.testing.assert_array_equal(selection.prompt.position_ids, golden[f"{prefix}final_position_ids"])
    embeds, final = selection.prompt.inputs_embeds[None].numpy(), golden[f"{prefix}final_inputs_embeds"]
    np.testing.assert_allclose(embeds if embeds.shape == final.shape else embeds[:, ::7], final, atol=1e-5)
    (new,) = family.generate([selection.prompt], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=2)
    assert new.tolist() == golden[f"{prefix}greedy_ids"].tolist()


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_the_references_selection_and_answer(family, reference, pixels, reduction):
    prompt = prompt_of(family[0], family[1], str(reference["question"]), pixels)
    prefix = "" if reduction == "max" else "mean_"
    check(family[0], prompt, reference, prefix, int(reference["budget"]), reduction)
    np.testing.assert_allclose(pixels[[0, -1], :, ::8, ::8], reference["pixel_values_sample"], atol=1e-5)


@pytest.mark.parametrize("case", ["skip3", "one5", "b64", "b65"])
def test_edge_cases(family, reference, pixels, case):
    golden = np.load(GOLDEN / "golden_short.npz")
    prompt = prompt_of(family[0], family[1], str(reference["question"]), pixels[: int(golden[f"{case}_num_frames"])])
    check(family[0], prompt, golden, f"{case}_", int(golden[f"{case}_budget"]), "max")
