import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from lmms_flexselect.families.qwen2_5_vl.needle import published_positions
from lmms_flexselect.needle import CHECKPOINTS, needle_families
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path
from lmms_flexselect.needle.train import needle_class
from lmms_flexselect.needle.videos import COLOURS, SHAPES, read_video


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_every_family_has_a_checkpoint():
    assert {folder.name for folder in CHECKPOINTS.iterdir()} == set(needle_families())


def test_no_weight_is_missing_or_too_many(checkpoint):
    assert not any(checkpoint.report.values()), checkpoint.report


@pytest.mark.parametrize("word", [*COLOURS, *SHAPES])
def test_words_are_single_tokens(checkpoint, word):
    assert len(checkpoint.tokenizer(word).input_ids) == 1
    assert len(checkpoint.tokenizer(" " + word).input_ids) == 1


@pytest.mark.parametrize("text", ["What shape is the red glyph?", "Zürich, 東京 😀\t\x00 end", "  A.\n\n<|im_end|>"])
def test_any_text_survives_the_tokenizer(checkpoint, text):
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer(text).input_ids) == text


@pytest.mark.parametrize("family", needle_families())
def test_the_checkpoint_has_the_tokenizer_that_the_code_builds(family):
    saved, built = AutoTokenizer.from_pretrained(CHECKPOINTS / family), needle_class(family)().tokenizer
    assert saved.get_vocab() == built.get_vocab()
    assert saved.eos_token == built.eos_token == "<|im_end|>"
    assert saved.pad_token == built.pad_token == "<|endoftext|>"
    assert saved.chat_template == built.chat_template


@pytest.mark.parametrize("family", needle_families())
def test_the_checkpoint_carries_its_preset(family):
    config = json.loads((CHECKPOINTS / family / "config.json").read_text())
    assert config["flexselect"] == needle_class(family).preset


def test_answers_are_greedy_and_end_as_a_turn_does(checkpoint):
    settings = checkpoint.model.generation_config
    end, pad = checkpoint.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert settings.do_sample is False
    assert settings.eos_token_id == [end, pad]
    assert settings.pad_token_id == pad


def test_weights_are_small_and_fit_bfloat16(checkpoint):
    assert sum(file.stat().st_size for file in checkpoint.folder.iterdir()) < 8_000_000
    for name, weight in checkpoint.model.named_parameters():
        assert weight.equal(weight.bfloat16().float()), name


def test_it_answers_from_all_tokens(checkpoint):
    rows = documents(16, videos=4)
    right = 0
    for row in rows:
        prompt = checkpoint.prompt(checkpoint.video(video_path(row)), row["question"])
        (new,) = checkpoint.family.generate([prompt], max_new_tokens=1)
        right += answers_shape(checkpoint.tokenizer.decode(new), row["shape"])
    assert right / len(rows) >= 0.9


def test_qwen2_5_vl_answers_through_transformers_alone():
    folder = CHECKPOINTS / "qwen2_5_vl"
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    rows = documents(16, videos=2)
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
