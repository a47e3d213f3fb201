"""Stand-ins for the ``llava`` package: there while upstream's module is imported, and never beside the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from lmms_eval.models import get_model
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLConfig, Qwen2Config

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.llava_video import llava_package
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN
from lmms_flexselect.families.llava_video.llava_package import (
    Conversation,
    KeywordsStoppingCriteria,
    SeparatorStyle,
    conv_templates,
    get_model_name_from_path,
    tokenizer_image_token,
    upstream_llava_vid,
)
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig
from lmms_flexselect.needle.tokenizer import build_tokenizer
from tests.support.evaluate import build

# As published with Qwen2-7B-Instruct.
QWEN2_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# Importing upstream's module


def test_upstreams_own_class_is_subclassed():
    from lmms_flexselect.families.llava_video.lmms_eval import LlavaVidFlexSelect

    upstream = sys.modules["lmms_eval.models.simple.llava_vid"]
    assert upstream is upstream_llava_vid()
    assert upstream.LlavaVid in LlavaVidFlexSelect.__mro__
    assert upstream.LlavaVid.__module__ == upstream.__name__ == "lmms_eval.models.simple.llava_vid"
    assert upstream.LlavaVid.generate_until.__code__.co_filename == upstream.__file__
    # Besides what every plugin class has: reading frames, and which frames a question is about.
    own = {name for name in vars(LlavaVidFlexSelect) if not name.startswith("_")}
    assert own == {"upstream_name", "load_video", "reader"}


def test_nothing_is_left_of_the_stand_ins():
    upstream_llava_vid()
    assert not [name for name in sys.modules if name.split(".")[0] == "llava"]
    assert find_spec("llava") is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'llava'"):
        import llava  # noqa: F401


def test_an_installed_llava_package_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "llava"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the real package was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = ("lmms_flexselect.families.llava_video.lmms_eval", "lmms_eval.models.simple.llava_vid")
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(FlexSelectError) as caught:
        get_model("llava_vid_flexselect")
    assert str(caught.value) == (
        "llava_vid_flexselect brings its own LLaVA-Video and cannot share an environment with the llava package: "
        "uninstall it (pip uninstall llava), or use another environment"
    )
    assert not {"llava", *modules} & set(sys.modules)


def test_a_folder_named_llava_is_no_installed_package(tmp_path, monkeypatch):
    """Such as one with data, where ``python -m lmms_eval`` is started."""
    (tmp_path / "llava").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert upstream_llava_vid().LlavaVid


def test_a_loaded_llava_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "llava", SimpleNamespace(__spec__=None))
    with pytest.raises(FlexSelectError, match="cannot share an environment with the llava package"):
        upstream_llava_vid()


ORDER = """
import importlib, json, pathlib, sys, tempfile
from lmms_eval.models import get_model

said = []
def load(name):
    try:
        bases = [base.__module__ for base in get_model(name).__mro__]
        said.append(next(module for module in bases if module.startswith("lmms_eval.")))
    except Exception as error:
        said.append(type(error).__name__)
    ends = (".llava_vid", ".llava_video.lmms_eval")
    said.append([m for m in sys.modules if m.split(".")[0] == "llava" or m.endswith(ends)])

load("llava_vid")
with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / "llava").mkdir()
    (pathlib.Path(folder) / "llava" / "__init__.py").touch()
    sys.path.insert(0, folder)
    load("llava_vid_flexselect")
    sys.path.remove(folder)
importlib.invalidate_caches()
load("llava_vid_flexselect")
print(json.dumps(said))
"""


def test_neither_a_failed_import_nor_a_refusal_leaves_anything_behind():
    """In a process of its own, as lmms-eval starts: stock first, then with a llava package, then without it."""
    run = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    upstream = "lmms_eval.models.simple.llava_vid"
    loaded = ["lmms_flexselect.families.llava_video.lmms_eval", upstream]
    *failed, last = json.loads(run.stdout.splitlines()[-1])
    assert failed == ["ModuleNotFoundError", [], "FlexSelectError", [], upstream]
    assert sorted(last) == sorted(loaded)


def test_an_import_that_fails_leaves_nothing_behind(monkeypatch):

    monkeypatch.delitem(sys.modules, "lmms_eval.models.simple.llava_vid", raising=False)

    def fail(name):
        assert sys.modules["llava.conversation"].conv_templates is conv_templates
        raise ImportError("decord is missing")

    monkeypatch.setattr(llava_package, "import_module", fail)
    with pytest.raises(ImportError, match="decord is missing"):
        upstream_llava_vid()
    assert find_spec("llava") is None
    assert not [name for name in sys.modules if name.split(".")[0] == "llava"]


def test_stock_llava_vid_says_that_it_cannot_load(llava_checkpoint):
    build("llava_vid_flexselect", pretrained=llava_checkpoint)
    with pytest.raises(OptionError, match=r"--model llava_vid needs the llava package; --model llava_vid_flexselect"):
        build("llava_vid", pretrained=llava_checkpoint)
    assert build("llava_vid_flexselect", pretrained=llava_checkpoint)


@pytest.mark.parametrize("config", [Qwen2Config, Qwen2_5_VLConfig])
def test_other_models_configurations_are_read_as_before(tmp_path, config):
    upstream_llava_vid()
    config().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is config
    assert type(AutoConfig.for_model("llava")).__module__.startswith("transformers.")
    assert type(AutoConfig.for_model("llava_onevision")).__module__.startswith("transformers.")


def test_upstreams_names_for_configurations_are_registered(llava_checkpoint):
    upstream_llava_vid()
    assert isinstance(AutoConfig.for_model("llava_qwen"), LlavaVideoConfig)
    assert AutoTokenizer.from_pretrained(llava_checkpoint)("red").input_ids == build_tokenizer()("red").input_ids


# Chats


def test_a_question_in_chatml():
    chat = conv_templates["qwen_1_5"].copy()
    chat.append_message(chat.roles[0], "<image>\nWhat is shown?")
    chat.append_message(chat.roles[1], None)
    assert chat.get_prompt() == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is shown?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["qwen_1_5", "qwen_2"])
@pytest.mark.parametrize("answers", [(None,), ("A circle.",), ("", None), ("Yes.", "No.")])
def test_chats_are_as_qwen2s_own_template_writes_them(tokenizer, name, answers):
    chat = conv_templates[name].copy()
    messages = []
    for number, answer in enumerate(answers):
        chat.append_message(chat.roles[0], f"Question {number}?")
        chat.append_message(chat.roles[1], answer)
        messages.append({"role": "user", "content": f"Question {number}?"})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    own = tokenizer.apply_chat_template(
        messages, chat_template=QWEN2_CHAT, add_generation_prompt=answers[-1] is None, tokenize=False
    )
    assert chat.get_prompt() == own


def test_a_question_is_the_beginning_of_its_answer(tokenizer):
    """Upstream's `loglikelihood` takes an answer's tokens to begin where the open question ends."""
    chats = []
    for answer in (None, "A. A circle."):
        chat = conv_templates["qwen_1_5"].copy()
        chat.append_message(chat.roles[0], "<image>\nWhat is shown?")
        chat.append_message(chat.roles[1], answer)
        chats.append(tokenizer_image_token(chat.get_prompt(), tokenizer))
    question, answered = chats
    assert answered[: len(question)] == question
    assert tokenizer.decode(answered[len(question) :]) == "A. A circle.<|im_end|>\n"


def test_a_template_is_not_changed_by_its_copies():
    copy = conv_templates["qwen_1_5"].copy()
    copy.append_message("user", "hello")
    copy.system = "Be brief."
    assert conv_templates["qwen_1_5"] == conv_templates["qwen_2"] == Conversation()
    assert (copy.sep_style, copy.sep, copy.sep2) == (SeparatorStyle.CHATML, "<|im_end|>", None)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("no picture", ["no picture"]),
        ("<image>", ["", ""]),
        ("before<image>\nbehind", ["before", "\nbehind"]),
        ("<image><image>\nTwo.", ["", "", "\nTwo."]),
        ("a<image>b<image>c<image>", ["a", "b", "c", ""]),
    ],
)
def test_tokens_of_a_prompt_with_pictures(tokenizer, prompt, parts):
    wanted: list[int] = []
    for number, part in enumerate(parts):
        wanted += [VIDEO_TOKEN] * (number > 0) + tokenizer(part).input_ids
    assert tokenizer_image_token(prompt, tokenizer) == wanted
    as_tensor = tokenizer_image_token(prompt, tokenizer, VIDEO_TOKEN, return_tensors="pt")
    assert as_tensor.dtype == torch.int64
    assert as_tensor.tolist() == wanted


def test_another_mark_for_pictures(tokenizer):
    assert tokenizer_image_token("<image>", tokenizer, -7) == [-7]


@pytest.mark.parametrize(
    "path", ["lmms-lab/LLaVA-Video-7B-Qwen2", "/data/LLaVA-Video-7B-Qwen2/", "LLaVA-Video-7B-Qwen2"]
)
def test_a_models_name_is_the_end_of_its_path(path):
    assert get_model_name_from_path(path) == "LLaVA-Video-7B-Qwen2"


# Where answers stop


def stops(tokenizer, keywords, *texts):
    rows = [tokenizer(text).input_ids for text in texts]
    shortest = min(len(row) for row in rows)
    criteria = KeywordsStoppingCriteria(keywords, tokenizer, torch.zeros(1, 5, dtype=torch.int64))
    done = criteria(torch.tensor([row[-shortest:] for row in rows]), None)
    assert done.dtype == torch.bool
    return done.tolist()


def test_an_answer_stops_at_its_keyword_and_the_others_go_on(tokenizer):
    assert stops(tokenizer, ["<|im_end|>"], "red<|im_end|>") == [True]
    assert stops(tokenizer, ["<|im_end|>"], "red<|im_end|>", "red red", "<|im_end|>red") == [True, False, False]
    assert stops(tokenizer, ["<|im_end|>", "###"], "a ###", "a <|im_end|>", "a ##") == [True, True, False]


def test_a_keyword_of_several_tokens_is_found_however_it_is_cut(tokenizer):
    keyword = "bluest"
    cut = [tokenizer(part).input_ids for part in ("blue", "st")]
    assert len(tokenizer(keyword).input_ids) > 1
    criteria = KeywordsStoppingCriteria([keyword], tokenizer, torch.zeros(1, 5, dtype=torch.int64))
    for pieces in (tokenizer(keyword).input_ids, [*cut[0], *cut[1]]):
        row = tokenizer("it is the ").input_ids + pieces
        assert [bool(criteria(torch.tensor([row[:n]]), None)) for n in range(1, len(row) + 1)][-2:] == [False, True]


def test_what_lies_before_the_last_tokens_stops_nothing(tokenizer):
    """A keyword once passed over, such as in a few-shot example, is not found again at every later token."""
    end = tokenizer("<|im_end|>").input_ids
    criteria = KeywordsStoppingCriteria(["<|im_end|>"], tokenizer, torch.tensor([end]))
    rows = torch.tensor([end + tokenizer("red").input_ids * 3])
    assert criteria(rows, None).tolist() == [False]
    assert criteria(rows[:, :1], None).tolist() == [True]
