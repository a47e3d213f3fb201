import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLProcessor

from lmms_flexselect.needle.batches import IGNORED, patchify, published_positions, training_batch
from lmms_flexselect.needle.model import build_processor
from lmms_flexselect.needle.videos import COLOURS, NeedleVideo


@pytest.fixture(scope="module")
def processor() -> Qwen2_5_VLProcessor:
    return build_processor()


def test_patchify_equals_the_processor(processor: Qwen2_5_VLProcessor) -> None:
    video = NeedleVideo.draw(3, 6)
    expected = processor.video_processor([video.frames()], return_tensors="pt")
    frames = torch.from_numpy(video.unit_frames()).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(patchify(frames, processor), expected["pixel_values_videos"], atol=1e-5, rtol=0)
    assert expected["video_grid_thw"].tolist() == [[6, 4, 4]]


def test_positions_follow_the_published_rule() -> None:
    ids = torch.tensor([[1, 1] + [9] * 12 + [2, 3]])
    positions = published_positions(ids, 9, step=1.5)[:, 0]
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 5, 5, 5, 5, 6, 7]
    assert positions[1].tolist() == [0, 1] + [2, 2, 3, 3] * 3 + [6, 7]
    assert positions[2].tolist() == [0, 1] + [2, 3, 2, 3] * 3 + [6, 7]
    # A step so small that rows and columns reach further than time.
    assert published_positions(ids, 9, step=0.25)[0, 0].tolist()[-2:] == [4, 5]


def test_labels_are_the_answers_and_the_ends_of_their_turns(processor: Qwen2_5_VLProcessor) -> None:
    batch = training_batch(processor, np.random.default_rng(0), size=3, units=5, needles=4, max_step=8.0, scaffold=True)
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["pixel_values_videos"].shape == (3 * 5 * 16, 1176)
    assert batch["position_ids"].shape == (3, *batch["input_ids"].shape)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        words = processor.tokenizer.decode(labels[labels != IGNORED]).split("<|im_end|>")
        answers = processor.tokenizer.decode(ids).split("<|im_start|>assistant\n")[1:]
        # The shape is asked for twice: as a hint at the colour word, and where the answer belongs.
        assert words == [2 * answer.split("<|im_end|>")[0] for answer in answers] + [""]
        assert len(answers) == 4
        hinted = ids[:-1][(labels[1:] != IGNORED)][::3]
        assert set(processor.tokenizer.decode(hinted).split()) <= set(COLOURS)


def test_without_a_scaffold_the_answer_alone_is_asked_for(processor: Qwen2_5_VLProcessor) -> None:
    batch = training_batch(processor, np.random.default_rng(0), 3, units=5, needles=4, max_step=8.0, scaffold=False)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        answers = processor.tokenizer.decode(ids).split("<|im_start|>assistant\n")[1:]
        asked = [processor.tokenizer.decode([label]) for label in labels[labels != IGNORED]]
        assert asked == [answer.split("<|im_end|>")[0] for answer in answers]


def test_training_sees_the_text_that_evaluation_sees(processor: Qwen2_5_VLProcessor) -> None:
    video = NeedleVideo.draw(5, 2, needle_count=1)
    batch = training_batch(
        processor, np.random.default_rng(0), size=1, units=2, needles=1, max_step=1.0, scaffold=False
    )
    trained = processor.tokenizer.decode(batch["input_ids"][0]).split("assistant\n")[0]
    colour = next(word for word in trained.split() if word + " glyph?" in trained)
    content = [{"type": "video"}, {"type": "text", "text": f"What shape is the {colour} glyph?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    asked = processor(text=[text], videos=[video.frames()], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(asked, batch["input_ids"][:, : asked.shape[1]])
