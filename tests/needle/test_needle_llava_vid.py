import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video.needle import NeedleLlavaVideo, chat_ids, shown_tokens
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.batches import Batch, training_batch

ONE_TURN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\n"
    "What shape is the red glyph?<|im_end|>\n<|im_start|>assistant\n"
)
TWO_TURNS = (
    f"{ONE_TURN}ring<|im_end|>\n<|im_start|>user\nWhat shape is the blue glyph?<|im_end|>\n"
    "<|im_start|>assistant\nbar<|im_end|>\n"
)
RED, BLUE = "What shape is the red glyph?", "What shape is the blue glyph?"


@pytest.fixture(scope="module")
def trainee() -> NeedleLlavaVideo:
    return NeedleLlavaVideo()


@pytest.fixture
def batch(trainee: NeedleLlavaVideo) -> Batch:
    return training_batch(trainee, np.random.default_rng(0), 8, units=5, needles=3, max_step=2.0, scaffold=False)


@pytest.mark.parametrize(
    ("chat", "text"), [([(RED, "")], ONE_TURN), ([(RED, "ring"), (BLUE, "bar")], TWO_TURNS)], ids=["asked", "answered"]
)
def test_chats_are_upstreams(trainee: NeedleLlavaVideo, chat: list[tuple[str, str]], text: str) -> None:
    before, behind = (trainee.tokenizer(part).input_ids for part in text.split("<image>"))
    assert chat_ids(chat, trainee.tokenizer).tolist() == [*before, VIDEO_TOKEN, *behind]


def test_training_shows_what_a_selection_would_leave(trainee: NeedleLlavaVideo, batch: Batch) -> None:
    """The family's own prompts of the same pixels, shortened, are what the forward pass comes to."""
    batch.frames.round_()
    family, (rows, columns) = LlavaVideo(trainee.model.eval()), trainee.model.model.grid
    inside = batch.ids[0] == VIDEO_TOKEN
    assert int(inside.sum()) == 5 * rows * columns
    asked = batch.ids[:, ~inside | (inside.cumsum(0) == 1)]
    videos = list(batch.frames.permute(0, 1, 3, 4, 2).to(torch.uint8))
    with torch.no_grad():
        inputs = trainee.inputs(batch)
        logits = trainee.model(**inputs).logits
        present = inputs["attention_mask"].bool()
        assert len({int(row.sum()) for row in present}) > 1
        for row, prompt in enumerate(family.prompts({"input_ids": asked, "videos": videos})):
            torch.testing.assert_close(inputs["inputs_embeds"][row], prompt.inputs_embeds, atol=1e-5, rtol=0)
            shortened = prompt.keep(present[row])
            expected = trainee.model(inputs_embeds=shortened.inputs_embeds[None]).logits[0]
            torch.testing.assert_close(logits[row, present[row]], expected, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(inputs["position_ids"][row, present[row]], shortened.position_ids[0])


def test_text_and_needles_are_always_shown(trainee: NeedleLlavaVideo, batch: Batch) -> None:
    present = trainee.inputs(batch)["attention_mask"].bool()
    assert present[batch.ids != VIDEO_TOKEN].all()
    needles = torch.rand(64, 5, 4) < 0.2
    shown = shown_tokens(needles)
    assert shown.shape == (64, 5, 2, 3)
    assert shown[..., :2].flatten(2)[needles].all()
    assert not shown.all()


def test_the_checkpoint_is_laid_out_as_the_original_ones() -> None:
    folder = CHECKPOINTS / "llava_vid"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava_qwen"
    assert config["mm_projector_type"] == "mlp2x_gelu"
    assert (config["mm_spatial_pool_mode"], config["mm_spatial_pool_stride"]) == ("bilinear", 2)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers"
    assert {"model.image_newline", "model.mm_projector.2.weight", f"{tower}.1.mlp.fc2.weight"} <= names
    assert f"{tower}.2.mlp.fc2.weight" not in names
    assert "lm_head.weight" not in names
