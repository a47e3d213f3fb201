"""What a checkpoint is called, which published model it is of, and what its files hold."""

from __future__ import annotations

import os
import shutil

import pytest

from lmms_flexselect import checkpoints
from lmms_flexselect.checkpoints import checkpoint_name, content_id, identify, published_model, same_checkpoint

SHAPES = {  # of config.json: width, layers
    "Qwen2.5-VL-3B": (2048, 36),
    "Qwen2.5-VL-7B": (3584, 28),
    "Qwen2.5-VL-72B": (8192, 80),
    "InternVL2.5-8B": (4096, 32),
    "tiny": (64, 6),
}
POOLED = {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}


def config(shape, part=None, **entries):
    hidden, layers = SHAPES[shape]
    text = {"hidden_size": hidden, "num_hidden_layers": layers}
    return {**({part: text} if part else text), **entries}


@pytest.mark.parametrize(
    ("pretrained", "name"),
    [
        ("lmms-lab/LLaVA-Video-7B-Qwen2", "LLaVA-Video-7B-Qwen2"),
        ("/models/LLaVA-Video-7B-Qwen2/", "LLaVA-Video-7B-Qwen2"),
        ("/models/LLaVA-Video-7B-Qwen2//", "LLaVA-Video-7B-Qwen2"),
        ("/models/LLaVA-Video-7B-Qwen2/.", "LLaVA-Video-7B-Qwen2"),
        ("/models/LLaVA-Video-7B-Qwen2/old/..", "LLaVA-Video-7B-Qwen2"),
        ("~/InternVL2_5-8B", "InternVL2_5-8B"),
        ("needle", "needle"),
        ("/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/0123abc", "Qwen2.5-VL-7B-Instruct"),
        ("/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/0123abc/", "Qwen2.5-VL-7B-Instruct"),
        ("/copied/models--Qwen--Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B-Instruct"),
        ("out/selector_a/checkpoint-1000", "selector_a/checkpoint-1000"),
        ("out/selector_a/checkpoint-1000/", "selector_a/checkpoint-1000"),
        ("out/selector_a/checkpoint-best", "checkpoint-best"),
        ("", ""),
    ],
)
def test_names(pretrained, name):
    assert checkpoint_name(pretrained) == name


def test_a_name_of_where_one_is(tmp_path, monkeypatch):
    folder = tmp_path / "InternVL2_5-8B"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder / "sub")
    assert [checkpoint_name(path) for path in (".", "..", "../", "../sub/..")] == ["sub", *["InternVL2_5-8B"] * 3]


@pytest.mark.parametrize(
    ("family", "pretrained", "model"),
    [
        ("internvl_hf", "/m/InternVL2_5-8B/", "InternVL2.5-8B"),
        ("internvl_hf", "/hub/models--OpenGVLab--InternVL2_5-8B/snapshots/0a1b", "InternVL2.5-8B"),
        ("internvl_hf", "OpenGVLab/InternVL2.5-8B", "InternVL2.5-8B"),
        ("internvl_hf", "/m/internvl2-5-8b-hf", "InternVL2.5-8B"),
        ("internvl_hf", "OpenGVLab/InternVL2_5-8B-AWQ", "InternVL2.5-8B"),
        ("internvl_hf", "OpenGVLab/InternVL2-8B", None),
        ("internvl_hf", "OpenGVLab/InternVL2_5-38B", None),
        ("internvl_hf", "OpenGVLab/InternVL3_5-8B-HF", None),
        ("qwen2_5_vl", "/models/qwen2_5_vl_7b", "Qwen2.5-VL-7B"),
        ("qwen2_5_vl", "/models/Qwen2.5VL-72B/", "Qwen2.5-VL-72B"),
        ("qwen2_5_vl", "/modelscope/Qwen/Qwen2___5-VL-3B-Instruct", "Qwen2.5-VL-3B"),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-32B-Instruct-AWQ", "Qwen2.5-VL-32B"),
        ("qwen2_5_vl", "/m/Qwen_Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B"),
        ("qwen2_5_vl", "out/qwen2.5-vl-7b-sft/checkpoint-500", "Qwen2.5-VL-7B"),
        ("qwen2_5_vl", "/m/compare-with-qwen2.5-vl-7b/my_small_model", None),
        ("qwen2_5_vl", "/m/qwen2.5-vl-7b/my_small_model/", None),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-14B", None),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7Bit", None),
        ("qwen2_5_vl", "lmms-lab/LLaVA-Video-7B-Qwen2", None),
        ("llava_vid", "/m/llava_video_72b_qwen2", "LLaVA-Video-72B"),
        ("llava_vid", "lmms-lab/LLaVA-NeXT-Video-7B", None),
    ],
)
def test_models_by_name(family, pretrained, model):
    identity = identify(family, pretrained)
    assert (identity.model, identity.doubt) == (model, "")
    assert checkpoint_name(pretrained) in identity.reason


@pytest.mark.parametrize(
    ("family", "contents", "model"),
    [
        ("qwen2_5_vl", config("Qwen2.5-VL-7B"), "Qwen2.5-VL-7B"),
        ("qwen2_5_vl", config("Qwen2.5-VL-3B", "text_config"), "Qwen2.5-VL-3B"),
        ("qwen2_5_vl", config("tiny"), None),
        ("qwen2_5_vl", config("tiny", _name_or_path="Qwen/Qwen2.5-VL-7B-Instruct"), "Qwen2.5-VL-7B"),
        ("qwen2_5_vl", config("tiny", _name_or_path="/m/qwen2.5-vl-7b/mine"), None),
        ("internvl_hf", config("InternVL2.5-8B", "llm_config", template="internvl2_5"), "InternVL2.5-8B"),
        ("internvl_hf", config("InternVL2.5-8B", "text_config", original_template="internvl2_5"), "InternVL2.5-8B"),
        # InternVL2-8B and LLaVA-OneVision-7B have the same decoders.
        ("internvl_hf", config("InternVL2.5-8B", "llm_config", template="internlm2-chat"), None),
        ("llava_vid", config("Qwen2.5-VL-7B", **POOLED), "LLaVA-Video-7B"),
        ("llava_vid", config("Qwen2.5-VL-7B"), None),
    ],
)
def test_models_of_folders_whose_name_says_nothing(family, contents, model):
    identity = identify(family, "/m/mine", contents)
    assert (identity.name, identity.model) == ("mine", model)


def test_a_name_and_another_shape():
    """The name is believed, with a word of doubt; not one that only speaks of a model, with other words before it."""
    named = identify("qwen2_5_vl", "/m/Qwen2.5-VL-7B-tiny", config("tiny"))
    assert (named.model, named.doubt) == ("Qwen2.5-VL-7B", "hidden_size 64, 6 layers")
    assert identify("qwen2_5_vl", "/m/compare-with-qwen2.5-vl-7b", config("tiny")).model is None
    assert identify("qwen2_5_vl", "/m/my-qwen2.5-vl-7b", config("Qwen2.5-VL-7B")).model == "Qwen2.5-VL-7B"


def test_a_link_is_what_it_leads_to(tmp_path):
    (tmp_path / "Qwen2.5-VL-7B-Instruct").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "Qwen2.5-VL-7B-Instruct")
    identity = identify("qwen2_5_vl", f"{tmp_path}/current/", config("Qwen2.5-VL-7B"))
    assert (identity.name, identity.model) == ("Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B"),
        ("qwen2_5_vl_7b", "Qwen2.5-VL-7B"),
        ("llava-video-72b-qwen2", "LLaVA-Video-72B"),
        ("InternVL2_5-8B", "InternVL2.5-8B"),
        ("InternVL2_5-8B-MPO", None),
        ("Qwen2.5-VL-7B-Instruct-AWQ", None),
        ("", None),
    ],
)
def test_the_published_checkpoint_itself(name, model):
    assert published_model(name) == model


def test_one_name_in_several_spellings():
    assert same_checkpoint("InternVL2_5-8B", "internvl2.5-8b")
    assert not same_checkpoint("InternVL2_5-8B", "InternVL2_5-8B-MPO")


# Contents


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "checkpoint"
    made.mkdir()
    for name, content in (("config.json", "{}"), ("model.safetensors", "weights"), ("README.md", "words")):
        (made / name).write_text(content)
    return made


def test_a_copy_holds_the_same(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert content_id(str(folder)) == content_id(f"{tmp_path}/copy/") != ""


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "added_tokens.json", "chat_template.jinja"])
def test_another_content_under_the_same_name(folder, name):
    """Of the same length and time, as rsync leaves it."""
    before = content_id(str(folder))
    file = folder / name
    times = (1, 1)
    text = file.read_text() if file.exists() else "text"
    file.write_text(text.swapcase() if text.swapcase() != text else "[]")
    os.utime(file, times)
    assert content_id(str(folder)) != before


def test_words_about_a_checkpoint_are_no_content(folder):
    before = content_id(str(folder))
    (folder / "README.md").write_text("others")
    (folder / "selector").mkdir()
    assert content_id(str(folder)) == before


def test_large_files_go_by_what_the_file_system_knows(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "_HASHED_WHOLE", 4)
    monkeypatch.setattr(checkpoints, "_BEGINNING", 2)
    before = content_id(str(folder))
    file, other = folder / "model.safetensors", folder / "new"
    assert content_id(str(folder)) == before
    state = file.stat()
    other.write_text("weightZ")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)
    assert content_id(str(folder)) != before


def test_a_large_file_in_the_hubs_cache_goes_by_its_blob(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "_HASHED_WHOLE", 4)
    monkeypatch.setattr(checkpoints, "_BEGINNING", 2)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (folder / "model.safetensors").replace(blobs / "0a1b")
    (folder / "model.safetensors").symlink_to(blobs / "0a1b")
    before = content_id(str(folder))
    os.utime(blobs / "0a1b", (1, 1))
    assert content_id(str(folder)) == before
    (blobs / "0a1b").rename(blobs / "2c3d")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blobs / "2c3d")
    assert content_id(str(folder)) != before


def test_a_hub_name_is_its_snapshot(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    for commit, text in (("0" * 40, "{}"), ("1" * 40, "[]")):
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "snapshots" / commit / "config.json").write_text(text)
    (repository / "refs" / "main").write_text("0" * 40)
    before = content_id("a/b")
    assert before == content_id(str(repository / "snapshots" / ("0" * 40))) == content_id(str(folder))
    assert content_id("a/b", "1" * 40) != before
    (repository / "refs" / "main").write_text("1" * 40)
    assert content_id("a/b") == content_id("a/b", "1" * 40) != before


def test_nothing_there():
    assert [content_id(name) for name in ("/nowhere/at/all", "someone/else", "a/b/c")] == [""] * 3
