"""What goes wrong at the command line is said in one line, early, and never becomes an answer."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lmms_flexselect.errors import FlexSelectError, VideoError
from tests.support.evaluate import Question, ask, build, evaluate

SMALL: dict[str, Any] = {"max_num_frames": 16, "min_pixels": 3136, "max_pixels": 112 * 84, "token_budget": 24}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"token_budget": 0}, r"token_budget=0: .*at least 1"),
        ({"token_budget": -5}, r"token_budget=-5: .*at least 1"),
        ({"token_budget": 2, "max_frames_per_set": 2}, r"token_budget=2: 8 frames make 4 frame sets .* at least 4"),
        ({"reference_layer": 6}, r"reference_layer=6: this model has layers 0 to 5"),
        ({"reference_layer": -1}, r"reference_layer=-1: .*at least 0"),
        ({"selector": "best"}, r"selector=best: must be one of flexselect, lite, none, random, uniform"),
        ({"selector_path": "/x"}, r"selector_path=/x: goes with selector=lite, not flexselect"),
        ({"token_budgt": 5}, r"unknown model argument token_budgt: did you mean token_budget\? known are .*rope"),
        ({"rope": "yarn"}, r"rope=yarn: must be one of published, library"),
        ({"seconds_per_unit": 0}, r"seconds_per_unit=0: must be greater than 0"),
        ({"max_num_frames": 1}, r"max_num_frames=1: .*at least 2"),
        ({"fps": -2}, r"fps=-2: must be greater than 0"),
        ({"min_pixels": 200000}, r"min_pixels=200000 exceeds max_pixels=9408"),
        ({"strict": "perhaps"}, r"strict=perhaps: must be true or false"),
        ({"pretrained": "/nowhere"}, r"pretrained=/nowhere: no checkpoint could be read there"),
    ],
)
def test_bad_options_are_refused_before_weights_are_loaded(monkeypatch, random_checkpoint, arguments, says):
    from transformers import Qwen2_5_VLForConditionalGeneration

    monkeypatch.setattr(
        Qwen2_5_VLForConditionalGeneration, "from_pretrained", lambda *a, **k: pytest.fail("weights were loaded")
    )
    with pytest.raises(FlexSelectError, match=says) as caught:
        build("qwen2_5_vl_flexselect", **{"pretrained": random_checkpoint, **SMALL, **arguments})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    from transformers import Qwen2Config

    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(FlexSelectError, match="is a qwen2 checkpoint; this class reads qwen2_5_vl"):
        build("qwen2_5_vl_flexselect", pretrained=tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", r"1 weight\(s\) missing, among them .*layers\.2\.self_attn\.q_proj\.weight"),
        ("misshapen", r"1 weight\(s\) of another shape, among them .*layers\.2\.self_attn\.q_proj\.weight"),
        ("truncated", "file not fully covered"),
        ("gone", "no file named model.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, random_checkpoint, damage, says):
    folder = tmp_path / "damaged"
    shutil.copytree(random_checkpoint, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(key for key in weights if key.endswith("layers.2.self_attn.q_proj.weight"))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1_000_000])
    elif damage == "gone":
        file.unlink()
    else:
        weight = weights.pop(name)
        weights |= {name: weight[:5].clone()} if damage == "misshapen" else {}
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(FlexSelectError, match=says) as caught:
        build("qwen2_5_vl_flexselect", pretrained=folder, **SMALL)
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["missing", "empty", "not_a_video", "truncated"])
def bad_video(request, tmp_path, stock_videos):
    path = tmp_path / f"{request.param}.mp4"
    whole = stock_videos["mlvu_dev"][0].read_bytes()
    if request.param != "missing":
        path.write_bytes(
            {"empty": b"", "not_a_video": b"text" * 99, "truncated": whole[: len(whole) // 2]}[request.param]
        )
    return path


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_a_bad_video_stops_a_strict_run_by_name(random_checkpoint, stock_videos, bad_video, simple):
    model = build("qwen2_5_vl_flexselect", simple, pretrained=random_checkpoint, **SMALL)
    good = str(stock_videos["mlvu_dev"][0])
    with pytest.raises(VideoError, match=str(bad_video)) as caught:
        ask(model, [Question("What?", (good,)), Question("What?", (str(bad_video),))])
    assert "\n" not in str(caught.value)


def test_a_video_that_upstream_would_leave_out_is_an_error(tmp_path, random_checkpoint, stock_videos):
    other_name = tmp_path / "video.mkv"
    other_name.write_bytes(stock_videos["mlvu_dev"][0].read_bytes())
    question = Question("What?", (str(other_name),))
    with pytest.raises(VideoError, match=r"video\.mkv: with --force_simple only \.mp4, \.avi, \.mov are read"):
        ask(build("qwen2_5_vl_flexselect", simple=True, pretrained=random_checkpoint, **SMALL), [question])
    (answer,) = ask(build("qwen2_5_vl_flexselect", pretrained=random_checkpoint, **SMALL), [question])
    assert isinstance(answer, str)


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_bad_video_is_answered_empty_where_asked_for(random_checkpoint, stock_videos, bad_video, simple, batch_size):
    good = str(stock_videos["mlvu_dev"][0])
    questions = [Question("What? A.", (good,)), Question("Which? B.", (str(bad_video),)), Question("Who? C.", (good,))]
    arguments = {"pretrained": random_checkpoint, "batch_size": batch_size, **SMALL, "dtype": "float32"}
    model = build("qwen2_5_vl_flexselect", simple, strict="false", **arguments)
    answers = ask(model, questions)
    assert answers[1] == ""
    alone = build("qwen2_5_vl_flexselect", simple, **arguments)
    assert [answers[0], answers[2]] == ask(alone, [questions[0], questions[2]])
    model.clean()
    block = model.flexselect_results
    assert block["overall"]["unreadable_videos"] == 1
    (listed,) = block["unreadable"]
    assert listed["doc_id"] == 1
    assert listed["error"].startswith(str(bad_video))


def test_an_empty_answer_is_not_cached(tmp_path, random_checkpoint, stock_videos):
    """A later run with the video in place must ask again, and only that question."""
    video = stock_videos["lvbench"][1]
    content = video.read_bytes()
    arguments = {"pretrained": random_checkpoint, **SMALL, "strict": "false"}
    video.write_bytes(b"")
    try:
        first = evaluate("qwen2_5_vl_flexselect", ["lvbench"], use_cache=str(tmp_path), **arguments)
    finally:
        video.write_bytes(content)
    assert first["samples"]["lvbench"][1]["filtered_resps"] == [""]
    second = evaluate("qwen2_5_vl_flexselect", ["lvbench"], use_cache=str(tmp_path), **arguments)
    assert second["samples"]["lvbench"][1]["filtered_resps"] != [""]
    assert second["throughput"]["avg_samples"] == 1
