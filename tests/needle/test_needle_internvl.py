import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoProcessor, InternVLProcessor

from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.needle import NeedleInternVL
from lmms_flexselect.families.internvl.processor import FrameSegments
from lmms_flexselect.families.internvl.prompt import spell_out
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.batches import Batch, training_batch
from lmms_flexselect.needle.benchmark import LENGTHS
from lmms_flexselect.needle.videos import NeedleVideo, write_video
from lmms_flexselect.video.reading import open_video

RED, BLUE = "What shape is the red glyph?", "What shape is the blue glyph?"
FRAME = "<img>" + 4 * "<IMG_CONTEXT>" + "</img>"
ONE_TURN = f"<|im_start|>user\n{3 * FRAME}{RED}<|im_end|>\n<|im_start|>assistant\n"
TWO_TURNS = f"{ONE_TURN}ring<|im_end|>\n<|im_start|>user\n{BLUE}<|im_end|>\n<|im_start|>assistant\nbar<|im_end|>\n"


@pytest.fixture(scope="module")
def trainee() -> NeedleInternVL:
    return NeedleInternVL()


@pytest.fixture
def batch(trainee: NeedleInternVL) -> Batch:
    return training_batch(trainee, np.random.default_rng(0), 8, units=5, needles=3, max_step=2.0, scaffold=False)


def of_frames(trainee: NeedleInternVL, ids: Tensor) -> Tensor:
    tokens = trainee.tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>"])
    return torch.isin(ids, torch.tensor(tokens))


@pytest.mark.parametrize(
    ("chat", "text"), [([(RED, "")], ONE_TURN), ([(RED, "ring"), (BLUE, "bar")], TWO_TURNS)], ids=["asked", "answered"]
)
def test_chats_have_bare_frames(trainee: NeedleInternVL, chat: list[tuple[str, str]], text: str) -> None:
    (ids,) = trainee.token_ids([chat], units=3)
    assert ids.tolist() == trainee.tokenizer(text).input_ids


def test_chats_are_those_of_the_checkpoints_template(trainee: NeedleInternVL) -> None:
    processor = AutoProcessor.from_pretrained(CHECKPOINTS / "internvl_hf")
    assert isinstance(processor, InternVLProcessor)
    content = [{"type": "video"}, {"type": "text", "text": RED}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    asked = spell_out(text, [], [3], processor.tokenizer, processor.image_seq_length, "bare")
    torch.testing.assert_close(asked.ids, trainee.token_ids([[(RED, "")]], units=3)[0])


def test_training_shows_what_a_selection_would_leave(trainee: NeedleInternVL, batch: Batch) -> None:
    """The family's own prompts of the same pixels, shortened, are what the forward pass comes to."""
    batch.frames.round_()
    processor = trainee.processor
    family = InternVL(trainee.model.eval(), (processor.start_image_token_id, processor.end_image_token_id))
    visual = of_frames(trainee, batch.ids)
    assert (visual.sum(1) == 5 * 6).all()
    video = torch.zeros_like(batch.ids).where(visual, -1)
    frame = ((visual.cumsum(1) - 1) // 6).where(visual, -1)
    with torch.no_grad():
        inputs = trainee.inputs(batch)
        logits = trainee.model(**inputs).logits
        present = inputs["attention_mask"].bool()
        assert len({int(row.sum()) for row in present}) > 1
        for row, pixels in enumerate(batch.frames.to(torch.uint8)):
            made = processor.video_processor([pixels], return_tensors="pt")["pixel_values_videos"][0]
            asked = {"input_ids": batch.ids, "token_video": video, "token_frame": frame}
            (prompt,) = family.prompts({**{k: v[row, None] for k, v in asked.items()}, "pixel_values": made})
            assert prompt.visual.equal(visual[row])
            shortened = prompt.keep(present[row])
            expected = trainee.model(inputs_embeds=shortened.inputs_embeds[None]).logits[0]
            torch.testing.assert_close(logits[row, present[row]], expected, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(inputs["position_ids"][row, present[row]], shortened.position_ids[0])


def test_text_and_needles_are_always_shown(trainee: NeedleInternVL, batch: Batch) -> None:
    present = trainee.inputs(batch)["attention_mask"].bool()
    visual = of_frames(trainee, batch.ids)
    assert present[~visual].all()
    shown = present[visual].view(8, 5, 6)
    assert shown[..., 1:5][batch.needles].all()
    for place in range(6):
        assert 0 < shown[..., place].float().mean() < 1


@pytest.mark.parametrize("units", LENGTHS)
def test_the_preset_reads_one_frame_of_each_temporal_unit(units: int) -> None:
    preset = NeedleInternVL.preset
    segments = FrameSegments(preset["num_frames"], preset["fps"])
    indices = segments.indices(SimpleNamespace(frames=2 * units, fps=2.0, shown=list))  # type: ignore[arg-type]
    assert [index // 2 for index in indices] == list(range(units))


def test_a_benchmark_file_has_the_frame_rate_that_the_preset_means(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", NeedleVideo.draw(3, 16).frames())
    video = open_video(str(tmp_path / "video.mp4"))
    assert (video.frames, video.fps) == (32, 2.0)


def test_the_checkpoint_is_laid_out_as_native_ones() -> None:
    folder = CHECKPOINTS / "internvl_hf"
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["text_config"]["model_type"]) == ("internvl", "qwen2")
    assert config["image_seq_length"] == AutoProcessor.from_pretrained(folder).image_seq_length == 4
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert {
        "language_model.model.layers.5.mlp.up_proj.weight",
        "multi_modal_projector.linear_2.weight",
        "vision_tower.embeddings.cls_token",
        "vision_tower.encoder.layer.1.lambda_2",
    } <= names
    assert "lm_head.weight" not in names
