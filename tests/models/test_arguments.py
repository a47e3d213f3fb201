"""Upstream's own model arguments: each is of the type that upstream's signature has, or refused before weights."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from lmms_eval.models import get_model
from loguru import logger

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.internvl import lmms_eval as internvl_hf
from lmms_flexselect.families.llava_video.model import LlavaVideoForCausalLM
from lmms_flexselect.families.qwen2_5_vl import lmms_eval as qwen2_5_vl
from lmms_flexselect.models.arguments import typed
from tests.support.evaluate import Question, ask, build, model_args

CHAT = {"qwen2_5_vl": False, "qwen2_5_vl simple": True, "llava_vid": True, "internvl_hf": False, "internvl2": False}
TRUE, FALSE = ("yes", "on", "1", "True", "TRUE"), ("no", "off", "0", "False", "false")


def model_class(name):
    model, _, simple = name.partition(" ")
    return get_model(f"{model}_flexselect", bool(simple))


def resolved(name, **arguments):
    """What upstream's constructor would get, as the command line has the arguments."""
    from lmms_eval.utils import simple_parse_args_string

    made = model_class(name)
    instance = made.__new__(made)
    given = simple_parse_args_string(model_args(**{"pretrained": "needle", **arguments}))
    return instance._resolve({"batch_size": 1, **given})


@pytest.fixture
def no_weights(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("weights were loaded")

    monkeypatch.setattr(LlavaVideoForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(qwen2_5_vl, "StrictLoader", fail)
    monkeypatch.setattr(internvl_hf, "load_model", fail)


@pytest.mark.parametrize("value", [*TRUE, *FALSE])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("llava_vid", "force_sample"),
        ("llava_vid", "add_time_instruction"),
        ("llava_vid", "overwrite"),
        ("llava_vid", "use_cache"),
        ("llava_vid", "tie_weights"),
        ("qwen2_5_vl", "use_cache"),
        ("qwen2_5_vl simple", "interleave_visuals"),
        ("internvl_hf", "use_cache"),
        ("internvl_hf", "low_cpu_mem_usage"),
        ("internvl2", "trust_remote_code"),
    ],
)
def test_words_for_true_and_false(name, argument, value):
    assert resolved(name, **{argument: value})[argument] is (value in TRUE)


def test_every_argument_of_upstreams_classes_has_a_type():
    """Of each class, what is true or false, a number or text by its signature is made that or refused."""
    kinds = {"bool": 0, "number": 0, "text": 0}
    for name in CHAT:
        made = model_class(name)
        upstream = next(c for c in made.__mro__ if c.__module__.startswith("lmms_eval") and "__init__" in vars(c))
        signature = inspect.signature(upstream.__init__).parameters
        for argument, parameter in signature.items():
            if argument in ("self", "kwargs"):
                continue
            try:
                value = typed({argument: "perhaps"}, signature)[argument]
            except OptionError as error:
                kinds["bool" if "true or false" in str(error) else "number"] += 1
                assert isinstance(parameter.default, (bool, int, float, type(None))), argument
            else:
                assert value == "perhaps"
                assert not isinstance(parameter.default, (bool, int, float)), argument
                kinds["text"] += 1
    assert min(kinds.values()) >= 10, kinds


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("llava_vid", {"force_sample": "perhaps"}, "force_sample=perhaps: must be true or false"),
        ("llava_vid", {"force_sample": 2}, "force_sample=2: must be true or false"),
        ("llava_vid", {"add_faster_video": True}, "add_faster_video=True: only False is supported"),
        ("llava_vid", {"add_faster_video": "yes"}, "add_faster_video=True: only False is supported"),
        ("llava_vid", {"faster_token_stride": 5}, "faster_token_stride=5: only 10 is supported"),
        ("llava_vid", {"truncate_context": "on"}, "truncate_context=True: only False is supported"),
        ("llava_vid", {"mm_resampler_type": "qformer"}, "mm_resampler_type=qformer: only spatial_pool is supported"),
        ("llava_vid", {"mm_resampler_location": "x"}, "mm_resampler_location=x: must be one of before, after"),
        ("llava_vid", {"attn_implementation": "fast"}, "attn_implementation=fast: must be one of sdpa, eager, flash_"),
        ("llava_vid", {"device": "gpu"}, "device=gpu: must be a device such as cuda, cuda:0 or cpu"),
        ("qwen2_5_vl", {"device_map": "all"}, "device_map=all: must be auto, balanced, balanced_low_0, sequential, or"),
        ("qwen2_5_vl", {"attn_implementation": "fast"}, "attn_implementation=fast: must be one of sdpa, eager, flash_"),
        ("qwen2_5_vl", {"min_pixels": "a"}, "min_pixels=a: must be a whole number of at least 1"),
        ("qwen2_5_vl", {"min_pixels": 0}, "min_pixels=0: must be a whole number of at least 1"),
        ("qwen2_5_vl", {"max_pixels": 9408.5}, "max_pixels=9408.5: must be a whole number of at least 1"),
        ("qwen2_5_vl", {"max_pixels": "nan"}, "max_pixels=nan: must be a whole number of at least 1"),
        ("qwen2_5_vl", {"fps": "fast"}, "fps=fast: must be a number or none"),
        ("qwen2_5_vl", {"fps": "true"}, "fps=True: must be a number or none"),
        ("qwen2_5_vl", {"fps": "inf"}, "fps=inf: must be greater than 0"),
        ("qwen2_5_vl", {"fps": "nan"}, "fps=nan: must be greater than 0"),
        ("qwen2_5_vl", {"use_cache": "maybe"}, "use_cache=maybe: must be true or false"),
        ("qwen2_5_vl", {"interleave_visuals": "yes"}, "interleave_visuals=True: only with --force_simple"),
        ("qwen2_5_vl", {"system_prompt": "<|video_pad|>"}, "system_prompt has <|video_pad|> in it"),
        ("qwen2_5_vl simple", {"reasoning_prompt": "<|image_pad|>"}, "reasoning_prompt has <|image_pad|> in it"),
        ("qwen2_5_vl simple", {"system_prompt": "none"}, "system_prompt=none: with --force_simple one is always said"),
        ("internvl_hf", {"num_frames": "a"}, "num_frames=a: must be a whole number of at least 1"),
        ("internvl_hf", {"num_frames": "none", "fps": "fast"}, "fps=fast: must be a number or none"),
        ("internvl_hf", {"min_patches": 0}, "min_patches=0: must be a whole number of at least 1"),
        ("internvl_hf", {"min_patches": 4, "max_patches": 2}, "min_patches=4 exceeds max_patches=2; give both"),
        ("internvl_hf", {"trust_remote_code": "perhaps"}, "trust_remote_code=perhaps: must be true or false"),
        ("internvl2", {"num_frame": "a"}, "num_frames=a: must be a whole number of at least 1"),
    ],
)
def test_what_is_refused(no_weights, name, arguments, says):
    with pytest.raises(FlexSelectError) as caught:
        resolved(name, **arguments)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["auto", "0", "-2", "1.5", "auto:4", ""])
@pytest.mark.parametrize("name", CHAT)
def test_batch_sizes_that_are_none(no_weights, name, size):
    """As ``--batch_size`` hands them over: text."""
    made = model_class(name)
    with pytest.raises(OptionError, match=rf"^batch_size={size}: must be a whole number of at least 1$"):
        made(pretrained="needle", batch_size=size)


def test_whole_numbers_as_the_command_line_has_them():
    given = resolved("qwen2_5_vl", max_pixels="1e4", min_pixels="3136.0", max_num_frames="1e1")
    assert {name: given[name] for name in ("max_pixels", "min_pixels", "max_num_frames")} == {
        "max_pixels": 10000,
        "min_pixels": 3136,
        "max_num_frames": 10,
    }
    assert all(isinstance(given[name], int) for name in ("max_pixels", "min_pixels", "max_num_frames"))
    assert resolved("qwen2_5_vl", fps="none")["fps"] is None


def test_a_gpu_that_is_not_there(no_weights, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OptionError, match=r"^device=cuda:3: torch sees 0 GPUs here$"):
        build("qwen2_5_vl_flexselect", pretrained="needle", device="cuda:3")


@pytest.mark.parametrize(
    ("name", "folder", "expected", "level"),
    [
        ("internvl_hf", "InternVL2_5-8B/", "preset of InternVL2.5-8B (num_frames=512", "WARNING"),
        ("internvl2", "models--OpenGVLab--InternVL2_5-8B/snapshots/0a1b", "preset of InternVL2.5-8B", "WARNING"),
        ("internvl_hf", "compare-with-InternVL2_5-8B/mine", "no preset fits: its name (mine) is none of", "INFO"),
    ],
)
def test_the_log_says_which_preset_was_taken(tmp_path, name, folder, expected, level):
    """The needle model has another shape, and what it wants to be read with in its config.json."""
    from lmms_flexselect.needle import CHECKPOINTS

    place = tmp_path / folder.rstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir()
    for file in (CHECKPOINTS / "internvl_hf").iterdir():
        if file.is_file():
            (place / file.name).symlink_to(file)
    said = []
    sink = logger.add(lambda message: said.append((message.record["level"].name, message.record["message"])))
    try:
        resolved(name, pretrained=f"{tmp_path}/{folder}")
    finally:
        logger.remove(sink)
    (line,) = [line for line in said if "preset" in line[1]]
    assert expected in line[1]
    assert line[0] == level


# The chat class's own additions


@pytest.fixture
def rendered(monkeypatch):
    """Every text that a Qwen tokenizer was given."""
    from transformers import Qwen2_5_VLProcessor

    texts = []
    own = Qwen2_5_VLProcessor.__call__

    def call(self, **kwargs):
        texts.extend(kwargs["text"])
        return own(self, **kwargs)

    monkeypatch.setattr(Qwen2_5_VLProcessor, "__call__", call)
    return texts


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
@pytest.mark.parametrize(
    ("given", "system", "end"),
    [
        ({}, "You are a helpful assistant.", "What?"),
        ({"system_prompt": "You watch videos."}, "You watch videos.", "What?"),
        ({"reasoning_prompt": "\\nThink."}, "You are a helpful assistant.", "What?\nThink."),
    ],
)
def test_both_classes_say_what_they_are_told_to(rendered, stock_videos, simple, given, system, end):
    model = build("qwen2_5_vl_flexselect", simple, pretrained="needle", **given)
    ask(model, [Question("What? ", (str(stock_videos["mlvu_dev"][0]),))])
    (text,) = rendered
    assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n")
    assert text.rstrip().endswith(
        f"{end if 'reasoning_prompt' in given else 'What? '}<|im_end|>\n<|im_start|>assistant"
    )


def test_a_tasks_own_system_message_gives_way():
    from lmms_flexselect.models.grid_media import AddedPrompts

    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Own."},
        {"role": "user", "content": [{"type": "text", "text": "What? "}, {"type": "video", "video": "x"}]},
    ]
    AddedPrompts("Given.", "\nThink.").add(messages)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": "Given."}]
    assert messages[1]["content"][0]["text"] == "What?\nThink."


def test_interleaved_visuals_have_their_places(rendered, stock_videos):
    video = str(stock_videos["mlvu_dev"][0])
    model = build("qwen2_5_vl_flexselect", True, pretrained="needle", interleave_visuals="yes")
    ask(model, [Question("Before <image 1> behind", (video,))])
    assert "Before <|vision_start|><|video_pad|><|vision_end|> behind" in rendered[0]
    with pytest.raises(ValueError, match="interleave_visuals=True: no <image 1> is in the question 'What"):
        ask(model, [Question("What?", (video,))])


@pytest.mark.parametrize("name", CHAT)
def test_without_a_key_value_cache_answers_are_the_same(name, stock_videos):
    model, _, simple = name.partition(" ")
    question = [Question("What is it?", (str(stock_videos["mlvu_dev"][0]),))]
    answers = [
        ask(build(f"{model}_flexselect", bool(simple), pretrained="needle", dtype="float32", use_cache=on), question)
        for on in ("no", "yes")
    ]
    assert answers[0] == answers[1]
