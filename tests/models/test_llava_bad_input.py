"""What goes wrong with LLaVA-Video is said in one line, early, and never becomes an answer as upstream has it."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lmms_flexselect.errors import FlexSelectError, OptionError, VideoError
from lmms_flexselect.families.llava_video import frames as llava_video_frames
from lmms_flexselect.families.llava_video.lmms_eval import LlavaSelectingModel
from lmms_flexselect.families.llava_video.model import LlavaVideoForCausalLM
from lmms_flexselect.models.records import results_block
from tests.support.evaluate import Question, ask, build, evaluate

SMALL: dict[str, Any] = {"max_frames_num": 16, "token_budget": 12, "max_frames_per_set": 3, "dtype": "float32"}
UPSTREAMS_ANSWER = "can not load"


def refusal(checkpoint, **arguments):
    """The one line in which a model is refused."""
    with pytest.raises(FlexSelectError) as caught:
        build("llava_vid_flexselect", **{"pretrained": checkpoint, **SMALL, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(LlavaVideoForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were loaded"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"token_budget": 0}, "token_budget=0: must be a whole number of at least 1"),
        ({"token_budget": 5}, "token_budget=5: 16 frames make 6 frame sets of at most 3, so give at least 6"),
        ({"max_frames_num": 0}, "max_frames_num=0: must be a whole number of at least 1"),
        ({"max_frames_num": -4}, "max_frames_num=-4: must be a whole number of at least 1"),
        ({"max_frames_num": "many"}, "max_frames_num=many: must be a whole number of at least 1"),
        ({"video_fps": 0}, "video_fps=0: must be a whole number of at least 1"),
        ({"video_fps": 0.5}, "video_fps=0.5: must be a whole number of at least 1"),
        ({"conv_template": "vicuna_v1"}, "conv_template=vicuna_v1: must be one of qwen_1_5, qwen_2"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode=max: must be one of bilinear, average"),
        ({"mm_spatial_pool_stride": -2}, "mm_spatial_pool_stride=-2: must be a whole number of at least 1"),
        ({"mm_spatial_pool_stride": 1.5}, "mm_spatial_pool_stride=1.5: must be a whole number of at least 1"),
        ({"mm_newline_position": "one_token"}, "mm_newline_position=one_token: must be one of grid"),
        ({"video_decode_backend": "foo"}, "video_decode_backend=foo: must be one of pyav, decord, image"),
        ({"max_num_frames": 16}, "unknown model argument max_num_frames: did you mean max_frames_num? known are add_"),
        ({"fps": 2}, "unknown model argument fps: "),
        ({"rope": "published"}, "unknown model argument rope: "),  # has its axes in Qwen2.5-VL alone
        ({"seconds_per_unit": 1.0}, "unknown model argument seconds_per_unit: "),
        ({"reference_layer": 6}, "reference_layer=6: this model has layers 0 to 5"),
        ({"reference_layer": -1}, "reference_layer=-1: must be a whole number of at least 0"),
        ({"selector": "best"}, "selector=best: must be one of flexselect, lite, none, random, uniform"),
        ({"selector": "lite"}, "selector=lite: give selector_path, the folder or hub name"),
        (
            {"selector": "lite", "selector_path": "/nowhere"},
            "selector_path=/nowhere: no checkpoint could be read there (",
        ),
        ({"selector_path": "/x"}, "selector_path=/x: goes with selector=lite, not flexselect"),
        ({"dtype": "float8"}, "dtype=float8: must be one of bfloat16, float16, float32"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "dtype=float32 and torch_dtype=float16: give one of them"),
        ({"strict": "perhaps"}, "strict=perhaps: must be true or false"),
        ({"pretrained": "/nowhere"}, "pretrained=/nowhere: no checkpoint could be read there ("),
    ],
)
def test_bad_options_are_refused_before_weights_are_loaded(no_weights, llava_checkpoint, arguments, says):
    assert refusal(llava_checkpoint, **arguments).startswith(says)


def test_a_stride_of_nothing_is_refused(no_weights, llava_checkpoint):
    assert refusal(llava_checkpoint, mm_spatial_pool_stride=0).startswith("mm_spatial_pool_stride=0: ")


def test_a_stride_longer_than_a_frame_is_refused(no_weights, llava_checkpoint):
    pooling = {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 5}
    assert refusal(llava_checkpoint, **pooling).startswith("mm_spatial_pool_stride=5: ")


# Checkpoints

ONEVISION = {"model_type": "llava_onevision", "text_config": {"model_type": "qwen2"}, "vision_config": {}}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ONEVISION, r"is a llava_onevision checkpoint; this class reads LLaVA-Video's original layout"),
        ({"model_type": "qwen2_5_vl"}, r"is a qwen2_5_vl checkpoint; this class reads LLaVA-Video's original layout"),
        ({"mm_projector_type": "linear"}, r"mm_projector_type=linear: only mlp2x_gelu is supported"),
        ({"mm_vision_select_layer": -1}, r"mm_vision_select_layer=-1: only -2 is supported"),
        ({"mm_newline_position": "one_token"}, r"mm_newline_position=one_token: only grid is supported"),
        ({"mm_patch_merge_type": "flat"}, r"mm_patch_merge_type=flat: only spatial_unpad is supported"),
        ({"add_faster_video": True}, r"add_faster_video=True: only False is supported"),
        ({"mm_spatial_pool_mode": "conv"}, r"mm_spatial_pool_mode=conv: must be one of bilinear, average"),
        (
            {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "vision_config": None},
            r"mm_vision_tower=openai/clip-vit-large-patch14-336 is not known; only siglip-so400m-patch14-384 is",
        ),
        ("{ no JSON", r"no checkpoint could be read there \("),
        (None, r"no checkpoint could be read there \(no config\.json\)"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused_by_their_configuration(
    no_weights, tmp_path, llava_checkpoint, config, says
):
    folder = tmp_path / "other"
    shutil.copytree(llava_checkpoint, folder)
    file = folder / "config.json"
    if config is None:
        file.unlink()
    elif isinstance(config, str):
        file.write_text(config)
    else:
        own = {} if "model_type" in config else json.loads(file.read_text())
        file.write_text(json.dumps({**own, **config}))
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: {says}") as caught:
        build("llava_vid_flexselect", pretrained=folder, **SMALL)
    assert "\n" not in str(caught.value)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WEIGHT = "model.layers.2.self_attn.q_proj.weight"


def change_weights(folder, change):
    for name in SHARDS:
        file = folder / name
        weights = load_file(file)
        if WEIGHT in weights:
            change(weights)
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            index["weight_map"] |= dict.fromkeys(weights, name)
            index["weight_map"] = {key: of for key, of in index["weight_map"].items() if of != name or key in weights}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            save_file(weights, file, metadata={"format": "pt"})


DAMAGES = {
    "shard missing": (
        lambda folder: (folder / SHARDS[1]).unlink(),
        "No such file or directory: .*model-00002-of-00002",
    ),
    "shard cut": (
        lambda folder: (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:90000]),
        "file not",
    ),
    "shard garbage": (lambda folder: (folder / SHARDS[0]).write_bytes(b"abc" * 999), "header too large"),
    "shard empty": (lambda folder: (folder / SHARDS[0]).write_bytes(b""), "header too small"),
    "index missing": (lambda folder: (folder / "model.safetensors.index.json").unlink(), "no file named model.safeten"),
    "weight missing": (
        lambda folder: change_weights(folder, lambda weights: weights.pop(WEIGHT)),
        rf"1 weight\(s\) missing, among them {WEIGHT}",
    ),
    "weight unknown": (
        lambda folder: change_weights(folder, lambda weights: weights.update({"model.x": weights[WEIGHT].clone()})),
        r"1 weight\(s\) unknown, among them model\.x",
    ),
    "weight misshapen": (
        lambda folder: change_weights(folder, lambda weights: weights.update({WEIGHT: weights[WEIGHT][:5].clone()})),
        rf"1 weight\(s\) of another shape, among them {WEIGHT}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path, llava_checkpoint, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(llava_checkpoint, folder)
    do, says = DAMAGES[damage]
    do(folder)
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: .*{says}") as caught:
        build("llava_vid_flexselect", pretrained=folder, **SMALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layers", "says"), [(5, r"12 weight\(s\) unknown"), (7, r"12 weight\(s\) missing")])
def test_a_configuration_of_another_depth_is_refused(tmp_path, llava_checkpoint, layers, says):
    folder = tmp_path / "damaged"
    shutil.copytree(llava_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: {says}, among them model\.layers\.{min(layers, 6)}"):
        build("llava_vid_flexselect", pretrained=folder, **SMALL)


@pytest.mark.parametrize("damage", ["no tokenizer", "tokenizer cut", "index cut"])
def test_a_checkpoint_with_other_files_damaged_is_refused(tmp_path, llava_checkpoint, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(llava_checkpoint, folder)
    if damage == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    else:
        name = "tokenizer.json" if damage == "tokenizer cut" else "model.safetensors.index.json"
        (folder / name).write_text((folder / name).read_text()[:100])
    assert refusal(folder).startswith(f"pretrained={folder}: ")


def test_a_path_that_upstream_takes_for_another_model_needs_no_towers_name(tmp_path, llava_checkpoint):
    folder = tmp_path / "trying"
    shutil.copytree(llava_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["mm_vision_tower"]  # its vision_config says it all
    (folder / "config.json").write_text(json.dumps(config))
    assert build("llava_vid_flexselect", pretrained=folder, **SMALL)


# Videos


def one_frame(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        image = np.full((64, 64, 3), 99, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


BAD = {
    "missing": "no such video file",
    "empty": "the video file is empty",
    "not_a_video": "not a readable video (",
    "truncated": "",
    "one_frame": "has 1 frame(s); at least 2 are needed",
    "a_folder": "the folder of frames is empty",
    "a_folder_of_text": "",
}


@pytest.fixture(params=BAD)
def bad_video(request, tmp_path, stock_videos):
    path = tmp_path / f"{request.param}.mp4"
    whole = stock_videos["mlvu_dev"][0].read_bytes()
    if request.param == "one_frame":
        one_frame(path)
    elif request.param.startswith("a_folder"):
        path.mkdir()
        if request.param == "a_folder_of_text":
            (path / "0.png").write_text("no picture")
    elif request.param != "missing":
        content = {"empty": b"", "not_a_video": b"text" * 99, "truncated": whole[: len(whole) // 2]}
        path.write_bytes(content[request.param])
    return path


def says(path):
    """What an error about a bad video begins with."""
    name = f"{path}/0.png" if path.stem == "a_folder_of_text" else path
    return f"{name}: {BAD[path.stem]}"


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_bad_video_stops_a_strict_run_by_name(llava_checkpoint, stock_videos, bad_video, decoder):
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, video_decode_backend=decoder, **SMALL)
    good = str(stock_videos["mlvu_dev"][0])
    with pytest.raises(VideoError) as caught:
        ask(model, [Question("What?", (good,)), Question("What?", (str(bad_video),))])
    assert str(caught.value).startswith(says(bad_video))
    assert "\n" not in str(caught.value)
    assert UPSTREAMS_ANSWER not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_it_does_so_before_the_first_question_is_answered(monkeypatch, llava_checkpoint, stock_videos, tmp_path, kind):
    bad = tmp_path / "bad.mp4"
    if kind == "empty":
        bad.touch()
    monkeypatch.setattr(LlavaSelectingModel, "generate", lambda *a, **k: pytest.fail("a question was answered"))
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, **SMALL)
    good = str(stock_videos["mlvu_dev"][0])
    with pytest.raises(VideoError, match=rf"^{bad}: {BAD[kind]}$"):
        ask(model, [Question("What?", (good,)), Question("What?", (str(bad),))])


def test_a_bad_video_is_answered_empty_where_asked_for(tmp_path, llava_checkpoint, stock_videos, bad_video):
    good = str(stock_videos["mlvu_dev"][0])
    questions = [Question("What? A.", (good,)), Question("Which? B.", (str(bad_video),)), Question("Who? C.", (good,))]
    arguments = {"pretrained": llava_checkpoint, "batch_size": 3, **SMALL}
    model = build("llava_vid_flexselect", strict="false", dump_selection=tmp_path / "dumps", **arguments)
    answers = ask(model, questions)
    assert answers[1] == ""
    alone = build("llava_vid_flexselect", **arguments)
    assert [answers[0], answers[2]] == ask(alone, [questions[0], questions[2]])
    assert "" not in (answers[0], answers[2])
    assert sorted(path.name for path in (tmp_path / "dumps").iterdir()) == ["asked__test__0.npz", "asked__test__2.npz"]
    block = results_block({}, model._selecting.records)
    assert block["overall"]["samples"] == 3
    assert block["overall"]["unreadable_videos"] == 1
    assert block["overall"]["visual_tokens_kept"] == 12  # of those that were answered
    (listed,) = block["unreadable"]
    assert (listed["task"], listed["split"], listed["doc_id"]) == ("asked", "test", 1)
    assert listed["error"].startswith(says(bad_video))
    assert UPSTREAMS_ANSWER not in json.dumps(block)


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("time_instruction", [False, True])
def test_a_question_about_nothing_or_two_videos_stops_the_run(llava_checkpoint, stock_videos, strict, time_instruction):
    """Not a file's fault, so not to be counted as one."""
    model = build(
        "llava_vid_flexselect",
        pretrained=llava_checkpoint,
        strict=strict,
        add_time_instruction=time_instruction,
        **SMALL,
    )
    good = str(stock_videos["mlvu_dev"][0])
    with pytest.raises(
        FlexSelectError, match=r"^llava_vid answers questions about a video, and there is none with: 'A"
    ):
        ask(model, [Question("A question.")])
    with pytest.raises(FlexSelectError, match=r"^llava_vid reads one video a question; this one has 2: "):
        ask(model, [Question("A question.", (good, good))])


@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_video_where_frames_are_to_be_read(llava_checkpoint, stock_videos, strict):
    good = str(stock_videos["mlvu_dev"][0])
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, strict=strict, video_decode_backend="image")
    if strict == "false":
        assert ask(model, [Question("What?", (good,))]) == [""]
    else:
        with pytest.raises(VideoError, match=rf"^{good}: with video_decode_backend=image a folder of frames is read"):
            ask(model, [Question("What?", (good,))])


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("where", ["resize_frames", "sample_frames", "LlavaClip"])
def test_a_programming_error_surfaces(monkeypatch, llava_checkpoint, stock_videos, strict, where):
    """Upstream's loop makes an answer of any exception."""
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, strict=strict, **SMALL)

    def fail(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(llava_video_frames, where, fail)
    with pytest.raises(RuntimeError, match="ours"):
        ask(model, [Question("What?", (str(stock_videos["mlvu_dev"][0]),))])


# Through the evaluator


@pytest.fixture
def damaged(stock_videos):
    """Gives one stock video other contents, for as long as a test runs."""
    video = stock_videos["mlvu_dev"][1]
    content = video.read_bytes()
    yield video.write_bytes
    video.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"text" * 99], ids=["empty", "not_a_video"])
def test_a_run_ends_with_the_name_of_a_bad_video(llava_checkpoint, stock_videos, damaged, content):
    damaged(content)
    with pytest.raises(VideoError, match=rf"^{stock_videos['mlvu_dev'][1]}: "):
        evaluate("llava_vid_flexselect", ["mlvu_dev"], pretrained=llava_checkpoint, **SMALL)


def answers(results, task):
    return [sample["filtered_resps"][0] for sample in results["samples"][task]]


def test_an_empty_answer_is_counted_and_not_cached(tmp_path, llava_checkpoint, stock_videos, damaged):
    """A later run with the video in place must ask again, and only that question."""
    whole = stock_videos["mlvu_dev"][1].read_bytes()
    arguments = {"pretrained": llava_checkpoint, **SMALL, "strict": "false", "use_cache": str(tmp_path)}
    damaged(whole[: len(whole) // 2])
    first = evaluate("llava_vid_flexselect", ["mlvu_dev"], **arguments)
    assert [answer == "" for answer in answers(first, "mlvu_dev")] == [False, True, False, False]
    assert not any(UPSTREAMS_ANSWER in answer for answer in answers(first, "mlvu_dev"))
    assert first["throughput"]["avg_samples"] == 4
    assert first["throughput"]["avg_unreadable_videos"] == 1
    damaged(whole)
    second = evaluate("llava_vid_flexselect", ["mlvu_dev"], **arguments)
    assert answers(second, "mlvu_dev")[1] != ""
    assert answers(second, "mlvu_dev")[2:] == answers(first, "mlvu_dev")[2:]
    assert second["throughput"]["avg_samples"] == 1
    assert second["throughput"]["avg_unreadable_videos"] == 0


def test_answers_come_out_of_the_cache(monkeypatch, tmp_path, llava_checkpoint, stock_videos):
    """Also where a task leaves settings out, as LVBench and LongVideoBench do: upstream's loop fills them in."""
    arguments = {"pretrained": llava_checkpoint, **SMALL, "use_cache": str(tmp_path)}
    first = evaluate("llava_vid_flexselect", ["lvbench"], **arguments)
    monkeypatch.setattr(LlavaSelectingModel, "generate", lambda *a, **k: pytest.fail("a question was asked again"))
    second = evaluate("llava_vid_flexselect", ["lvbench"], **arguments)
    assert answers(second, "lvbench") == answers(first, "lvbench")
