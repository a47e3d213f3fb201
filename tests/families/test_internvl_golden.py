"""InternVL2.5 against vectors made with the authors' implementation, where they are present."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.prompt import END, START, SYSTEM_MESSAGE, VIDEO_MARK, spell_out
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer
from lmms_flexselect.families.pixels import normalised
from tests.support.golden import GOLDEN, REDUCTIONS, check_selection, close, needs, short_cases, thinned, vectors

FAMILY = "internvl2_5"
pytestmark = needs(FAMILY)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def family():
    model = load_model(str(GOLDEN / FAMILY / "model"), torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # the vectors were made with the end of sequence disabled
    tokenizer = load_tokenizer(str(GOLDEN / FAMILY / "model"))
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    return InternVL(model, (start, end)), tokenizer


@pytest.fixture(scope="module")
def reference():
    return vectors(FAMILY, "golden_reference")


@pytest.fixture(scope="module")
def pixels(family, reference):
    size, _ = family[0].model.config.vision_config.image_size
    return normalised(torch.from_numpy(reference["frames_uint8"]), size, **IMAGENET)


def prompt_of(family, question, pixels, input_ids):
    family, tokenizer = family
    text = chatml([("user", f"{VIDEO_MARK}\n{question}"), ("assistant", None)], SYSTEM_MESSAGE)
    tokens = spell_out(text, [], [len(pixels)], tokenizer, family.model.config.image_seq_length, "bare")
    np.testing.assert_array_equal(tokens.ids[None], input_ids)
    inputs = {"input_ids": tokens.ids, "token_video": tokens.video, "token_frame": tokens.frame}
    (prompt,) = family.prompts({name: ids[None] for name, ids in inputs.items()} | {"pixel_values": pixels})
    return prompt


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_references_selection_and_answer(family, reference, pixels, reduction):
    prompt = prompt_of(family, str(reference["question"]), pixels, reference["input_ids"])
    assert int(prompt.visual.sum()) == reference["visual_tokens"]
    assert int(prompt.visual.nonzero()[0]) == reference["teacher_visual_start"]
    selector = family[0].reference_layer(int(reference["reference_layer"]), reduction)
    check_selection(family[0], prompt, selector, reference, REDUCTIONS[reduction])
    sample = reference["pixel_values_sample"]
    close(thinned(thinned(pixels[[0, -1]], sample, 2), sample, 3), sample, 1e-5)


@pytest.mark.parametrize("case", short_cases(FAMILY))
def test_edge_cases(family, reference, pixels, case):
    golden = vectors(FAMILY, "golden_short")
    frames = pixels[: int(golden[f"{case}_num_frames"])]
    prompt = prompt_of(family, str(reference["question"]), frames, golden[f"{case}_input_ids"])
    selector = family[0].reference_layer(int(reference["reference_layer"]))
    check_selection(family[0], prompt, selector, golden, f"{case}_", reference)
