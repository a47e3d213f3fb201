"""Configs as lmms-eval reads them, resolved without weights; checkpoints found without a hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmms_flexselect.cost.memory import GIB
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.doctor.checkpoints import find_checkpoint, write_stand_in
from lmms_flexselect.tools.doctor.plan import plan, read_config
from lmms_flexselect.tools.installed import installed_path

LLAVA = "lmms-lab/LLaVA-Video-7B-Qwen2"


def one(model_args: str, model: str = "llava_vid_flexselect", **others):
    (run,) = plan([{"model": model, "model_args": model_args, "tasks": "videomme, mlvu_dev", **others}])
    return run


def test_the_demo():
    runs = plan(read_config(installed_path("run_configs") / "demo.yaml"))
    assert len(runs) == 15
    assert not [run.complaint for run in runs if run.complaint]
    loaded = {checkpoint for run in runs for checkpoint in (run.checkpoint, run.selector) if checkpoint is not None}
    assert len(loaded) == 6
    assert all(checkpoint.here for checkpoint in loaded)
    assert max(run.parameters for run in runs) < 2_000_000
    assert not Path("selection").exists()  # a run's folder, which looking must not make


@pytest.mark.parametrize(
    ("config", "gibs", "words", "spread"),
    [
        ("paper/llava_video_7b_reference", (18, 20), "at layer 19, 512 frames = 107,520 visual tokens", False),
        ("stock/internvl2_5_8b_lite", (20, 23), "selector=lite, 512 frames = 132,096 visual tokens", False),
        ("paper/qwen2_5_vl_7b_reference", (39, 45), "at layer 20, 1024 frames = 112,640 visual tokens", False),
        ("paper/llava_video_72b_none", (140, 150), "selector=none, 64 frames = 13,440 visual tokens", True),
    ],
)
def test_published_models_that_are_not_here(config, gibs, words, spread):
    (run,) = plan(read_config(installed_path("run_configs") / f"{config}.yaml"))
    assert run.complaint is None
    assert run.checkpoint is not None
    assert run.memory is not None
    assert run.checkpoint.state == "published"
    assert gibs[0] * GIB < run.memory.total < gibs[1] * GIB
    assert words in run.summary
    assert run.spread == spread


def test_upstreams_default_spreads_a_copy_but_for_llava():
    assert not one(f"pretrained={LLAVA}").spread
    assert one("pretrained=OpenGVLab/InternVL2_5-8B", "internvl_hf_flexselect").spread


@pytest.mark.parametrize(
    ("model_args", "complaint"),
    [
        (f"pretrained={LLAVA},selektor=lite", "unknown model argument selektor: did you mean selector?"),
        (f"pretrained={LLAVA},token_budget=4", "token_budget=4: 512 frames make 8 frame sets"),
        (f"pretrained={LLAVA},reference_layer=28", "reference_layer=28: this model has layers 0 to 27"),
        (f"pretrained={LLAVA},mm_spatial_pool_mode=cubic", "mm_spatial_pool_mode=cubic: must be one of"),
        ("pretrained=someone/else", "pretrained=someone/else: neither a folder nor in the hub's cache"),
        (f"pretrained={LLAVA},selector=lite,selector_path=mine", "selector_path=mine: neither a folder nor"),
        (
            "pretrained=Qwen/Qwen2.5-VL-7B-Instruct",
            "pretrained=Qwen/Qwen2.5-VL-7B-Instruct: is a qwen2_5_vl checkpoint",
        ),
    ],
)
def test_what_the_run_would_be_refused_for(model_args, complaint):
    run = one(model_args)
    assert run.complaint.startswith(complaint)
    assert run.memory is None
    assert run.tasks == ("videomme", "mlvu_dev")


@pytest.mark.parametrize(
    ("published", "model", "words"),
    [
        (LLAVA, "llava_vid_flexselect", "20 frames = 4,200 visual tokens"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl_flexselect", "32 frames = 32,768 visual tokens"),
        ("OpenGVLab/InternVL2_5-8B", "internvl_hf_flexselect", "32 frames = 8,256 visual tokens"),
    ],
)
def test_a_checkpoint_of_another_name_is_read_by_upstreams_defaults(published, model, words, tmp_path):
    """No preset goes by its name, nor by its shape."""
    folder = write_stand_in(published, tmp_path).rename(tmp_path / "mine")
    config = folder / "config.json"
    config.write_text(re.sub(r'("num_hidden_layers": )(28|32)', r"\g<1>12", config.read_text()))
    run = one(f"pretrained={folder},token_budget=256", model)
    assert run.complaint is None
    assert words in run.summary


def test_models_of_others():
    assert one("pretrained=x", model="qwen2_5_vl").foreign
    assert (
        one("pretrained=x", model="qwen_flexselect").complaint == "model=qwen_flexselect: lmms-eval knows no such model"
    )


def test_more_frames_need_more():
    def total(frames: int) -> int:
        return one(f"pretrained={LLAVA},selector=none,max_frames_num={frames}").memory.total

    assert total(64) < total(512) < total(1024)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: [a\n", r"not YAML \(.*, line 2\)"),
        ("just words\n", "a config is one mapping of lmms-eval's options"),
        ("[]\n", "a config is one mapping of lmms-eval's options"),
        ("", "a config is one mapping of lmms-eval's options"),
        ("model: x\ntasks: y\nmodel_arg: z\n", "lmms-eval has no option model_arg"),
        ("tasks: y\n", "says no model"),
        ("model: x\n", "says no tasks"),
        ("model: x\ntasks: [a, b]\n", "says no tasks"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, complaint):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(FlexSelectError, match=complaint) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FlexSelectError, match=r"cannot be read \(No such file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FlexSelectError, match=r"cannot be read \(not a text file\)"):
        read_config(tmp_path / "binary.yaml")


def test_an_environment_is_no_unknown_option(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: x\ntasks: y\nenv: {A: b}\n")
    assert read_config(path)[0]["env"] == {"A": "b"}


# Checkpoints --------------------------------------------------------------------------------------------------------


def test_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    found = find_checkpoint(str(tmp_path / "mine"), tmp_path)
    assert (found.state, found.missing, found.here) == ("folder", ("model.safetensors",), False)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "mine" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "mine" / "one.safetensors").touch()
    assert find_checkpoint(str(tmp_path / "mine"), tmp_path).missing == ("two.safetensors",)
    (tmp_path / "mine" / "two.safetensors").touch()
    assert find_checkpoint(str(tmp_path / "mine"), tmp_path).here
    (tmp_path / "mine" / "model.safetensors.index.json").write_text("{")
    assert find_checkpoint(str(tmp_path / "mine"), tmp_path).missing == ("model.safetensors.index.json",)


def test_the_hubs_cache(tmp_path, monkeypatch):
    """A download that was broken off, then whole; its preset is that of its name on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--OpenGVLab--InternVL2_5-8B"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    published = Path(str(find_checkpoint("OpenGVLab/InternVL2_5-8B", tmp_path / "a").place))
    for name in ("config.json", "added_tokens.json"):
        (snapshot / name).write_bytes((published / name).read_bytes())
    index = {"weight_map": {"a": "one.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    found = find_checkpoint("OpenGVLab/InternVL2_5-8B", tmp_path / "b")
    assert (found.state, found.missing) == ("partial", ("one.safetensors",))
    assert found.place == str(snapshot)
    run = one("pretrained=OpenGVLab/InternVL2_5-8B", "internvl2_flexselect")
    assert "512 frames" in run.summary, run.complaint
    (snapshot / "one.safetensors").touch()
    assert find_checkpoint("OpenGVLab/InternVL2_5-8B", tmp_path / "c").state == "cached"


def test_what_is_nowhere(tmp_path):
    for name in ("someone/else", "/no/such/folder", "a/b/c", "./x"):
        assert find_checkpoint(name, tmp_path).state == "absent"
