"""Against vectors made with the authors' implementation (not in the repository; skipped where absent)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from lmms_flexselect import Qwen2_5_VL
from tests.support.golden import GOLDEN, REDUCTIONS, check_selection, close, needs, short_cases, thinned, vectors

FAMILY = "qwen2_5_vl"
FRAMES_PER_UNIT = 2
pytestmark = needs(FAMILY)


@pytest.fixture(scope="module")
def reference():
    return vectors(FAMILY, "golden_reference")


@pytest.fixture(scope="module")
def family():
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(GOLDEN / FAMILY / "model", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # the vectors were made with the end of sequence disabled
    return Qwen2_5_VL(model)


def inputs_of(reference, frames, input_ids):
    processor = Qwen2VLVideoProcessor.from_pretrained(GOLDEN / FAMILY / "model")
    processed = processor(videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], do_resize=False, return_tensors="pt")
    return {
        "input_ids": torch.from_numpy(input_ids),
        "pixel_values_videos": processed["pixel_values_videos"],
        "video_grid_thw": processed["video_grid_thw"],
        "second_per_grid_ts": torch.from_numpy(reference["second_per_grid_ts"]),
    }


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_selection_and_answer(family, reference, reduction):
    inputs = inputs_of(reference, reference["frames_uint8"], reference["input_ids"])
    assert inputs["video_grid_thw"].tolist() == reference["video_grid_thw"].tolist()
    sample = reference["pixel_values_videos_sample"]
    close(thinned(thinned(inputs["pixel_values_videos"], sample), sample, 1), sample, 1e-5)
    (prompt,) = family.prompts(inputs)
    np.testing.assert_array_equal(prompt.position_ids, reference["full_position_ids"][:, 0])
    selector = family.reference_layer(int(reference["reference_layer"]), reduction)
    selection = check_selection(family, prompt, selector, reference, REDUCTIONS[reduction])
    assert selection.visual_tokens == reference["visual_tokens"]
    for number in range(int(reference["num_sets"])):
        present = ~prompt.visual
        present[selection.visual_columns[selection.frame_set == number]] = True
        positions = prompt.compact_positions(present)
        np.testing.assert_array_equal(positions, reference[f"position_ids_set{number}"][:, 0])


@pytest.mark.parametrize("case", short_cases(FAMILY))
def test_short_videos(family, reference, case):
    golden = vectors(FAMILY, "golden_short")
    frames = reference["frames_uint8"][: FRAMES_PER_UNIT * int(golden[f"{case}_num_frames"])]
    (prompt,) = family.prompts(inputs_of(reference, frames, golden[f"{case}_input_ids"]))
    selector = family.reference_layer(int(reference["reference_layer"]))
    check_selection(family, prompt, selector, golden, f"{case}_", reference)
