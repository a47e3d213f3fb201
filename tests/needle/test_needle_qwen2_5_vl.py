import numpy as np
import pytest
import torch

from lmms_flexselect.families.qwen2_5_vl.needle import NeedleQwen2_5_VL, patchify, published_positions
from lmms_flexselect.needle.batches import training_batch
from lmms_flexselect.needle.benchmark import question
from lmms_flexselect.needle.videos import COLOURS, NeedleVideo


@pytest.fixture(scope="module")
def trainee() -> NeedleQwen2_5_VL:
    return NeedleQwen2_5_VL()


def test_patchify_equals_the_processor(trainee: NeedleQwen2_5_VL) -> None:
    video = NeedleVideo.draw(3, 6)
    expected = trainee.processor.video_processor([video.frames()], return_tensors="pt")
    frames = torch.from_numpy(video.unit_frames()).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(patchify(frames, trainee.processor), expected["pixel_values_videos"], atol=1e-5, rtol=0)
    assert expected["video_grid_thw"].tolist() == [[6, 4, 4]]


def test_positions_follow_the_published_rule() -> None:
    ids = torch.tensor([[1, 1] + [9] * 12 + [2, 3]])
    positions = published_positions(ids, 9, step=1.5)[:, 0]
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 5, 5, 5, 5, 6, 7]
    assert positions[1].tolist() == [0, 1] + [2, 2, 3, 3] * 3 + [6, 7]
    assert positions[2].tolist() == [0, 1] + [2, 3, 2, 3] * 3 + [6, 7]
    # A step so small that rows and columns reach further than time.
    assert published_positions(ids, 9, step=0.25)[0, 0].tolist()[-2:] == [4, 5]


def test_inputs_are_what_the_model_takes(trainee: NeedleQwen2_5_VL) -> None:
    batch = training_batch(trainee, np.random.default_rng(0), 3, units=5, needles=4, max_step=8.0, scaffold=True)
    inputs = trainee.inputs(batch)
    assert inputs["pixel_values_videos"].shape == (3 * 5 * 16, 1176)
    assert inputs["position_ids"].shape == (3, *batch.ids.shape)
    assert inputs["video_grid_thw"].tolist() == [[5, 4, 4]] * 3


def test_training_sees_the_text_that_evaluation_sees(trainee: NeedleQwen2_5_VL) -> None:
    batch = training_batch(trainee, np.random.default_rng(0), 1, units=2, needles=1, max_step=1.0, scaffold=False)
    trained = trainee.tokenizer.decode(batch.ids[0]).split("assistant\n")[0]
    colour = next(colour for colour in COLOURS if question(colour) in trained)
    content = [{"type": "video"}, {"type": "text", "text": f"What shape is the {colour} glyph?"}]
    text = trainee.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    video = NeedleVideo.draw(5, 2, needle_count=1)
    asked = trainee.processor(text=[text], videos=[video.frames()], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(asked, batch.ids[:, : asked.shape[1]])
