import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.batches import published_positions
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path
from lmms_flexselect.needle.model import build_tokenizer
from lmms_flexselect.needle.videos import COLOURS, SHAPES, read_video

CHECKPOINT = CHECKPOINTS / "qwen2_5_vl"


@pytest.fixture(scope="module")
def processor() -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    model, report = AutoModelForImageTextToText.from_pretrained(
        CHECKPOINT, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model


@pytest.mark.parametrize("word", [*COLOURS, *SHAPES])
def test_words_are_single_tokens(processor: Qwen2_5_VLProcessor, word: str) -> None:
    assert len(processor.tokenizer(word).input_ids) == 1
    assert len(processor.tokenizer(" " + word).input_ids) == 1


@pytest.mark.parametrize("text", ["What shape is the red glyph?", "Zürich, 東京 😀\t\x00 end", "  A.\n\n<|im_end|>"])
def test_any_text_survives_the_tokenizer(processor: Qwen2_5_VLProcessor, text: str) -> None:
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text


def test_the_checkpoint_has_the_tokenizer_that_the_code_builds() -> None:
    saved, built = AutoTokenizer.from_pretrained(CHECKPOINT), build_tokenizer()
    assert saved.get_vocab() == built.get_vocab()
    assert saved.eos_token == built.eos_token == "<|im_end|>"
    assert saved.pad_token == built.pad_token == "<|endoftext|>"
    assert saved.chat_template == built.chat_template


def test_the_checkpoint_carries_its_preset(model: Qwen2_5_VLForConditionalGeneration) -> None:
    preset = json.loads((CHECKPOINT / "config.json").read_text())["flexselect"]
    assert set(preset) == {
        "reference_layer",
        "token_budget",
        "max_frames_per_set",
        "dtype",
        "min_pixels",
        "max_pixels",
        "max_num_frames",
    }
    assert 0 <= preset["reference_layer"] < model.config.text_config.num_hidden_layers
    assert model.generation_config.do_sample is False


def test_weights_are_small_and_fit_bfloat16(model: Qwen2_5_VLForConditionalGeneration) -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 8_000_000
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weight.bfloat16().float()), name


def test_it_answers_from_all_tokens(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    rows = documents(16, videos=4)
    right = 0
    for row in rows:
        content = [{"type": "video"}, {"type": "text", "text": row["question"]}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text=[text], videos=[read_video(video_path(row))], return_tensors="pt")
        positions = published_positions(inputs["input_ids"], processor.video_token_id)
        generated = model.generate(**inputs, position_ids=positions, max_new_tokens=1)
        answer = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        right += answers_shape(answer, row["shape"])
    assert right / len(rows) >= 0.9
