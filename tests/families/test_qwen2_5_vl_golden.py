"""Against vectors made with the reference implementation (not in the repository; skipped where absent)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from lmms_flexselect import FlexSelect, Qwen2_5_VL

GOLDEN = Path(os.environ.get("FLEXSELECT_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "qwen2_5_vl"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden vectors are absent: {GOLDEN}")


@pytest.fixture(scope="module")
def reference():
    return np.load(GOLDEN / "golden_reference.npz")


@pytest.fixture(scope="module")
def family():
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(GOLDEN / "model", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # the vectors were made with the end of sequence disabled
    return Qwen2_5_VL(model)


def inputs_of(frames: np.ndarray, input_ids: np.ndarray) -> dict[str, torch.Tensor]:
    processor = Qwen2VLVideoProcessor.from_pretrained(GOLDEN / "model")
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    processed = processor(videos=[video], do_resize=False, return_tensors="pt")
    return {
        "input_ids": torch.from_numpy(input_ids),
        "pixel_values_videos": processed["pixel_values_videos"],
        "video_grid_thw": processed["video_grid_thw"],
        "second_per_grid_ts": torch.tensor([1.0]),
    }


def assert_same_relevance(actual: torch.Tensor, expected: np.ndarray) -> None:
    """1e-5 relative as a set; single entries differ by up to 2.5e-5 from a float64 run of the same model too."""
    wanted = torch.from_numpy(expected)
    assert float((actual - wanted).norm() / wanted.norm()) < 1e-5
    torch.testing.assert_close(actual, wanted, rtol=5e-5, atol=0)


def generated(family, prompt) -> tuple[list[int], torch.Tensor]:
    output = family.model.generate(
        inputs_embeds=prompt.inputs_embeds[None],
        position_ids=prompt.position_ids[:, None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[0].tolist(), torch.stack([step[0] for step in output.logits])


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_selection_and_answer(family, reference, reduction):
    prefix = "" if reduction == "max" else "mean_"
    (prompt,) = family.prompts(inputs_of(reference["frames_uint8"], reference["input_ids"]))
    assert torch.equal(prompt.position_ids, torch.from_numpy(reference["full_position_ids"][:, 0]))

    selector = family.reference_layer(int(reference["reference_layer"]), reduction)
    selection = FlexSelect(selector, token_budget=int(reference["budget"]))(prompt)

    for g in range(int(reference["num_sets"])):
        members = selection.frame_set == g
        frames = selection.visual_frame[members].unique()
        assert frames.tolist() == reference[f"frames_set{g}"].tolist()
        present = ~prompt.visual
        present[prompt.visual.nonzero().squeeze(-1)[members]] = True
        positions = prompt.compact_positions(present)
        assert torch.equal(positions, torch.from_numpy(reference[f"position_ids_set{g}"][:, 0]))
        assert_same_relevance(selection.scores[members], reference[f"{prefix}scores_set{g}"])
    kept = selection.visual_kept.nonzero().squeeze(-1)
    assert kept.tolist() == reference[f"{prefix}selected_indices"].tolist()
    assert torch.equal(selection.prompt.position_ids, torch.from_numpy(reference[f"{prefix}final_position_ids"][:, 0]))
    torch.testing.assert_close(
        selection.prompt.inputs_embeds,
        torch.from_numpy(reference[f"{prefix}final_inputs_embeds"][0]),
        rtol=0,
        atol=1e-5,
    )

    tokens, logits = generated(family, selection.prompt)
    torch.testing.assert_close(logits, torch.from_numpy(reference[f"{prefix}all_step_logits"]), rtol=0, atol=1e-4)
    assert tokens == reference[f"{prefix}greedy_ids"].tolist()


@pytest.mark.parametrize("case", ["skip3", "one5", "b64", "b65"])
def test_short_videos(family, reference, case):
    golden = np.load(GOLDEN / "golden_short.npz")
    frames = reference["frames_uint8"][: 2 * int(golden[f"{case}_num_frames"])]
    (prompt,) = family.prompts(inputs_of(frames, golden[f"{case}_input_ids"]))
    selector = family.reference_layer(int(reference["reference_layer"]))
    selection = FlexSelect(selector, token_budget=int(golden[f"{case}_budget"]))(prompt)
    if case == "skip3":
        assert bool(selection.visual_kept.all())
    else:
        assert selection.visual_kept.nonzero().squeeze(-1).tolist() == golden[f"{case}_selected_indices"].tolist()
        for g in range(int(selection.frame_set.max()) + 1):
            assert_same_relevance(selection.scores[selection.frame_set == g], golden[f"{case}_scores_set{g}"])
    assert torch.equal(selection.prompt.position_ids, torch.from_numpy(golden[f"{case}_final_position_ids"][:, 0]))
    tokens, logits = generated(family, selection.prompt)
    torch.testing.assert_close(logits[0], torch.from_numpy(golden[f"{case}_first_token_logits"]), rtol=0, atol=1e-4)
    assert tokens == golden[f"{case}_greedy_ids"].tolist()
