"""InternVL's tokenizers against SentencePiece itself, and where an answer ends."""

from __future__ import annotations

import re

import pytest
import sentencepiece
from transformers import GenerationConfig, Qwen2Config, Qwen2Tokenizer

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer, stop_token_ids
from lmms_flexselect.needle.tokenizer import TEXT_TOKENS, build_tokenizer
from tests.support.internvl_checkpoint import original_config, write_files
from tests.support.internvl_tokenizers import sentencepiece_model, tokenizer_files, vocabulary
from tests.support.internvl_weights import random_native

TEXTS = (
    "",
    " ",
    "\n",
    "Answer with the option's letter from the given choices directly.",
    "<|im_start|>system\n你是书生·万象<|im_end|>\n<|im_start|>user\n",
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
    "Frame1: <img><IMG_CONTEXT></img>\nFrame2: <img><IMG_CONTEXT></img>\n",
    "  two  spaces <box> here </box>  and a\ttab ",
    "é 😀 <s> </s> <unk> [UNUSED_TOKEN_145] ▁",
)


def write_tokenizer(folder, llm, **changed):
    """All files of a checkpoint but its weights; `changed` are other contents, by the names' first parts."""
    contents = {"config.json": original_config(llm, "300m"), **tokenizer_files(llm)}
    return str(write_files(folder, {name: changed.get(name.split(".")[0], contents[name]) for name in contents}))


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_internlm2_is_sentencepiece_between_special_tokens(tmp_path, dummy_prefix):
    folder = write_tokenizer(tmp_path, "internlm2", tokenizer=sentencepiece_model(dummy_prefix))
    tokenizer = load_tokenizer(folder)
    _, special = vocabulary("internlm2")
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, **special}
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(dummy_prefix))
    cut = re.compile(f"({'|'.join(map(re.escape, special))})")
    for text in TEXTS:
        expected = [1]
        for part in cut.split(text):
            expected += [special[part]] if part in special else pieces.encode(part)
        assert tokenizer(text).input_ids == expected, text
        assert tokenizer(text, add_special_tokens=False).input_ids == expected[1:], text


def test_bytes_are_put_together_again(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, "internlm2"))
    for text in ("Answer: é\n 😀 B.", "你是 Ж", "a  b"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, 3], skip_special_tokens=True) == text
        assert tokenizer.batch_decode([ids, [1, *ids]], skip_special_tokens=True) == [text, text]


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_the_token_in_front(tmp_path, add_bos_token):
    config = tokenizer_files("internlm2")["tokenizer_config.json"] | {"add_bos_token": add_bos_token}
    ids = load_tokenizer(write_tokenizer(tmp_path, "internlm2", tokenizer_config=config))("system").input_ids
    assert (ids[0] == 1) == add_bos_token


def test_qwen2(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, "qwen2"))
    assert isinstance(tokenizer, Qwen2Tokenizer)
    expected = build_tokenizer((*TEXT_TOKENS, *list(vocabulary("qwen2")[1])[3:]))
    for text in TEXTS:
        assert tokenizer(text).input_ids == expected(text).input_ids, text


@pytest.mark.parametrize("llm", ["internlm2", "qwen2"])
def test_special_tokens_are_where_the_files_say(tmp_path, llm):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, llm))
    for token, number in vocabulary(llm)[1].items():
        assert tokenizer.convert_tokens_to_ids(token) == number
        assert tokenizer(f"a{token}b", add_special_tokens=False).input_ids.count(number) == 1
        assert tokenizer.decode([number]) == token


def test_native_checkpoints(tmp_path):
    random_native("qwen2", "300m").config.save_pretrained(tmp_path)
    expected = build_tokenizer()
    expected.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("What is it?").input_ids == expected("What is it?").input_ids
    assert stop_token_ids(tokenizer) == [expected.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize("llm", ["internlm2", "qwen2"])
def test_where_an_answer_ends(tmp_path, llm):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, llm))
    end = vocabulary(llm)[1]["<|im_end|>"]
    for given, expected in ((None, [end]), (2, [end, 2]), ([2, end], [end, 2]), ([end], [end]), ([5, 6], [end, 5, 6])):
        assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=given)) == expected
    assert stop_token_ids(tokenizer) == [end]


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no tokenizer")])
def test_a_damaged_tokenizer_is_refused(tmp_path, name, damage):
    folder = write_tokenizer(tmp_path, "internlm2" if name == "tokenizer.model" else "qwen2")
    damage(tmp_path / name)
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: its tokenizer cannot be read \([^\n]+\)$"):
        load_tokenizer(folder)


def test_another_family_is_refused(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=r"^pretrained=\S+: is a qwen2 checkpoint; this class reads internvl and"):
        load_tokenizer(str(tmp_path))
