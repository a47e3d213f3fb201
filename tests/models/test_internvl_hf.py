"""The lmms-eval classes of InternVL, run by lmms-eval's own evaluator, on original and native checkpoints."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    GotOcr2ImageProcessor,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen2Tokenizer,
)
from transformers.video_utils import VideoMetadata

from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.needle.tokenizer import TEXT_TOKENS, build_tokenizer
from lmms_flexselect.video.reading import open_video
from tests.support.evaluate import Question, ask, build, evaluate
from tests.support.internvl_checkpoint import write_original
from tests.support.internvl_weights import IMAGE_SIZE, random_native

# 4 tokens and two marks a frame; 6 frames in two sets.
SMALL: dict[str, Any] = {"num_frames": 6, "token_budget": 12, "max_frames_per_set": 3, "dtype": "float32"}
PROMPT = "What is shown?"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'video' %}<video>\n{% elif c['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", params=["internlm2", "qwen2"])
def original(request, tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("internvl") / request.param, request.param)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl") / "native"
    build_tokenizer((*TEXT_TOKENS, "<img>", "</img>", IMAGE_TOKEN, "<video>")).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"start_image": "<img>", "end_image": "</img>", "context_image": IMAGE_TOKEN, "video": "<video>"}
    config["extra_special_tokens"] = {f"{name}_token": token for name, token in named.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    model = random_native("qwen2", "300m")
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


def test_the_four_stock_tasks_run_unchanged(original, stock_videos):
    results = evaluate("internvl_hf_flexselect", list(stock_videos), pretrained=original, **SMALL)
    assert set(results["results"]) == set(stock_videos)
    throughput = results["throughput"]
    assert throughput["avg_samples"] == 16
    assert throughput["avg_visual_tokens"] == 36
    assert throughput["avg_visual_tokens_kept"] == 12
    assert 0 < throughput["avg_selector_seconds"] < throughput["avg_time_to_first_token_seconds"]


@pytest.mark.parametrize("selector", ["none", "flexselect", "uniform", "random"])
def test_selection_reaches_the_language_model(generated, original, videos, selector):
    model = build("internvl_hf_flexselect", pretrained=original, selector=selector, **SMALL)
    ask(model, [Question(PROMPT, (videos[0],))])
    (record,) = model._selecting.records
    dropped = 0 if selector == "none" else 36 - 12
    assert record.visual_tokens_kept == 36 - dropped
    assert generated[0][0]["inputs_embeds"].shape[1] == record.input_tokens
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in generated[0][0]["eos_token_id"]


def test_the_prompt_is_that_of_the_original(generated, original, videos):
    asked = {}
    for labels, system in (("numbered", "internvl2_5"), ("bare", "none")):
        model = build(
            "internvl_hf_flexselect",
            pretrained=original,
            selector="none",
            frame_labels=labels,
            system_message=system,
            **SMALL,
        )
        ask(model, [Question(PROMPT, (videos[0],))])
        asked[labels] = model.tokenizer.decode(generated[-1][0]["input_ids"][0].tolist()).replace(" ", "")
    frame = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    assert re.sub("<s>", "", asked["bare"]).startswith(f"<|im_start|>user\n{frame * 6}What")
    assert "".join(f"Frame{n}:{frame}\n" for n in range(1, 7)) + "What" in asked["numbered"]
    assert "书生·万象" in asked["numbered"]
    assert asked["numbered"].endswith("<|im_start|>assistant\n")


def test_marks_compete_or_stay(original, videos):
    for marks, tokens in (("compete", 36), ("stay", 24)):
        model = build("internvl_hf_flexselect", pretrained=original, image_marks=marks, **SMALL)
        ask(model, [Question(PROMPT, (videos[0],))])
        assert model._selecting.records[0].visual_tokens == tokens


def test_the_alias_takes_the_arguments_of_internvl2(original, videos, tmp_path):
    arguments = {**SMALL, "num_segments": 6, "modality": "video", "dump_selection": tmp_path}
    del arguments["num_frames"]
    model = build("internvl2_flexselect", pretrained=original, **arguments)
    ask(model, [Question(PROMPT, (videos[0],))])
    assert model.upstream_name == "internvl2"
    _, sample = read_selection(tmp_path / "asked__test__0.npz")
    assert len(sample["videos"][0]["frames_indices"]) == 6
    with pytest.raises(OptionError, match="modality=image: must be one of video"):
        build("internvl2_flexselect", pretrained=original, modality="image")


def test_a_video_with_fewer_frames_than_asked_for_gives_all(original, videos):
    model = build("internvl_hf_flexselect", pretrained=original, **{**SMALL, "num_frames": 500, "token_budget": 400})
    ask(model, [Question(PROMPT, (videos[0],))])
    (record,) = model._selecting.records
    assert record.visual_tokens == record.visual_tokens_kept == open_video(videos[0]).frames * 6


def test_frames_by_rate(original, videos):
    by_rate = {**SMALL, "num_frames": "none", "fps": 1}
    model = build("internvl_hf_flexselect", pretrained=original, **by_rate)
    ask(model, [Question(PROMPT, (videos[0],))])
    video = open_video(videos[0])
    assert model._selecting.records[0].visual_tokens == int(video.frames / video.fps) * 6 == 36


def test_frames_are_upstreams_where_nothing_says_how_many(original):
    frames = {**SMALL}
    del frames["num_frames"]
    assert build("internvl_hf_flexselect", pretrained=original, **frames).num_frames == 32


def test_the_needle_models_own_sampling_holds(stock_videos):
    model = build("internvl_hf_flexselect", pretrained="needle")
    assert (model.num_frames, model.fps) == (None, 1.0)
    assert (model.options.frame_labels, model.options.token_budget) == ("bare", 96)


def test_images_go_through_to_the_model(generated, original):
    """A question about pictures alone is upstream's own business: all tiles, and nothing selected."""
    model = build("internvl_hf_flexselect", pretrained=original, **SMALL)
    picture = Image.new("RGB", (3 * IMAGE_SIZE, 2 * IMAGE_SIZE), (200, 30, 30))
    (answer,) = ask(model, [Question(PROMPT, (picture,))])
    kwargs, output = generated[-1]
    assert len(kwargs["pixel_values"]) == 3 * 2 + 1
    assert answer == model.tokenizer.decode(output[0, kwargs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert model._selecting.records[0].visual_tokens == model._selecting.records[0].visual_tokens_kept == 7 * 4


def test_an_image_beside_a_video_is_kept_whole(generated, original, videos):
    model = build("internvl_hf_flexselect", pretrained=original, max_patches=1, **SMALL)
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (200, 30, 30))
    for media in ((picture, videos[0]), (videos[0], picture)):
        ask(model, [Question(PROMPT, media)])
        ids = generated[-1][0]["input_ids"][0]
        record = model._selecting.records[-1]
        assert (record.visual_tokens, record.visual_tokens_kept) == (36, 12)
        text = model.tokenizer.decode(ids.tolist()).replace(" ", "")
        assert "<img>" + "<IMG_CONTEXT>" * 4 + "</img>\n" in text


def test_what_goes_wrong_is_no_answer(monkeypatch, original, videos):
    """Upstream's loop makes an empty answer of any exception."""
    model = build("internvl_hf_flexselect", pretrained=original, **SMALL)
    with pytest.raises(VideoError, match=r"^/nowhere\.mp4: no such video file$"):
        ask(model, [Question(PROMPT, ("/nowhere.mp4",))])

    def fail(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(type(model._selecting._family), "prompts", fail)
    with pytest.raises(RuntimeError, match="ours"):
        ask(model, [Question(PROMPT, (videos[0],))])


def test_a_bad_video_is_answered_empty_where_asked_for(original, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("text" * 99)
    model = build("internvl_hf_flexselect", pretrained=original, strict="false", **SMALL)
    first, second = ask(model, [Question(PROMPT, (str(bad),)), Question(PROMPT, (videos[0],))])
    assert first == ""
    assert second != ""
    assert [record.error is None for record in model._selecting.records] == [False, True]


def test_native_checkpoints_are_asked_as_their_processor_asks(generated, native, videos):
    """Upstream reads videos with torchcodec, which is not here; so its processor is given the frames."""
    ours = build("internvl_hf_flexselect", pretrained=native, selector="none", **SMALL)
    (answer,) = ask(ours, [Question(PROMPT, (videos[0],))])
    call, _ = generated[-1]

    processor = AutoProcessor.from_pretrained(native)
    video = open_video(videos[0])
    indices = processor.video_processor.sample_frames(VideoMetadata(video.frames, video.fps), num_frames=6)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": PROMPT}]}
    inputs = processor(
        text=processor.apply_chat_template([message], add_generation_prompt=True),
        videos=[video.read(indices.tolist()).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert torch.equal(call["input_ids"], inputs["input_ids"])
    model = InternVLForConditionalGeneration.from_pretrained(native, dtype=torch.float32).eval()
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer == processor.decode(output, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_frames": 0}, "num_frames=0: must be a whole number of at least 1"),
        ({"num_frames": "none"}, "num_frames=none: give fps"),
        ({"frame_labels": "some"}, "frame_labels=some: must be one of numbered, bare"),
        ({"rope": "library"}, "unknown model argument rope"),
        ({"reference_layer": 99}, "reference_layer=99: this model has layers 0 to"),
    ],
)
def test_bad_options_are_refused(original, arguments, says):
    with pytest.raises(OptionError, match=f"^{re.escape(says)}"):
        build("internvl_hf_flexselect", pretrained=original, **{**SMALL, **arguments})
