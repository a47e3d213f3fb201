"""Model arguments: what is accepted, who wins, and what a wrong one is answered with."""

from __future__ import annotations

import math

import pytest

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.options import Options as InternVLOptions
from lmms_flexselect.families.qwen2_5_vl.options import Options as QwenOptions
from lmms_flexselect.families.spec import families, load
from lmms_flexselect.options import FlexSelectOptions, check_names

# The defaults that a user who gives nothing relies on.
DEFAULTS = {
    "selector": "flexselect",
    "selector_path": None,
    "selector_args": None,
    "reference_layer": None,
    "token_budget": 7040,
    "max_frames_per_set": 64,
    "reduction": "max",
    "budget_remainder": "spread",
    "seed": 0,
    "dtype": "bfloat16",
    "strict": True,
    "video_decode_backend": "pyav",
    "video_timeout": 60.0,
    "dump_selection": None,
    "prefetch_videos": 2,
    "store_gpu_gib": 4.0,
    "store_cpu_gib": 8.0,
    "process_timeout": 12.0,
}
ALLOWED = {
    "reduction": ["max", "mean"],
    "budget_remainder": ["spread", "drop"],
    "rope": ["published", "library"],
    "frame_labels": ["numbered", "bare"],
    "image_marks": ["compete", "stay"],
    "system_message": ["internvl2_5", "none"],
    "dtype": ["bfloat16", "float16", "float32"],
    "video_decode_backend": ["pyav", "decord", "image"],
}


def complaint(call, *args, **kwargs):
    """The one line that a wrong value is answered with."""
    with pytest.raises(OptionError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults():
    assert FlexSelectOptions().to_dict() == DEFAULTS
    assert FlexSelectOptions.names() == set(DEFAULTS)


OF_ONE_FAMILY: dict[str, dict[str, object]] = {
    "qwen2_5_vl": {"rope": "published", "seconds_per_unit": None},
    "llava_vid": {},
    "internvl_hf": {"frame_labels": "numbered", "image_marks": "compete", "system_message": "none"},
}


@pytest.mark.parametrize("family", OF_ONE_FAMILY)
def test_a_familys_options_are_those_that_mean_something_to_it(family):
    options = load(families()[family].options)
    assert options().to_dict() == {**DEFAULTS, **OF_ONE_FAMILY[family]}


def test_every_choice_is_tested():
    choices = {**QwenOptions.CHOICES, **InternVLOptions.CHOICES}
    assert {name: list(values) for name, values in choices.items()} == ALLOWED


def having(name):
    """The options that have one of this name."""
    return next(each for each in (FlexSelectOptions, QwenOptions, InternVLOptions) if name in each.names())


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in ALLOWED.items() for v in values])
def test_allowed_values(name, value):
    assert getattr(having(name)(**{name: value}), name) == value


@pytest.mark.parametrize("value", ["flexselect", "lite", "uniform", "random", "none"])
def test_selectors(value):
    path = "/weights" if value == "lite" else None
    assert FlexSelectOptions(selector=value, selector_path=path).selector == value


def test_the_earlier_name_of_a_selector():
    assert FlexSelectOptions(selector="reference").selector == "flexselect"


@pytest.mark.parametrize("value", ["", "Reference", "all", 1, None, True])
def test_a_wrong_selector(value):
    text = complaint(FlexSelectOptions, selector=value)
    assert text.startswith(f"selector={value}: must be one of flexselect, lite, none, random, uniform, or a class as")


@pytest.mark.parametrize("value", ["", "Max", "all", 1, None, True])
@pytest.mark.parametrize("name", ALLOWED)
def test_a_wrong_choice_is_answered_with_the_right_ones(name, value):
    text = complaint(having(name), **{name: value})
    assert text == f"{name}={value}: must be one of {', '.join(ALLOWED[name])}"


NUMBERS = [("token_budget", 1), ("max_frames_per_set", 1), ("reference_layer", 0), ("seed", 0)]


@pytest.mark.parametrize("value", [-1, -5.0, 0.5, True, "20", "none", [3], math.nan, math.inf])
@pytest.mark.parametrize(("name", "least"), NUMBERS)
def test_whole_numbers_only(name, least, value):
    text = complaint(FlexSelectOptions, **{name: value})
    assert text.startswith(f"{name}={int(value) if value == -5.0 else value}: ")
    assert text.endswith(f"must be a whole number of at least {least}")


@pytest.mark.parametrize(("name", "least"), NUMBERS)
def test_the_least_number_is_allowed(name, least):
    assert getattr(FlexSelectOptions(**{name: least}), name) == least
    if least:
        assert complaint(FlexSelectOptions, **{name: least - 1}).startswith(f"{name}=0: ")


def test_a_whole_float_becomes_an_int():
    """lmms-eval reads 7e3 in --model_args as a float."""
    budget = FlexSelectOptions(token_budget=7e3).token_budget  # type: ignore[arg-type]
    assert (budget, type(budget)) == (7000, int)


@pytest.mark.parametrize("value", [0, -1, 0.0, math.inf, -math.inf, math.nan])
def test_seconds_are_positive(value):
    assert complaint(QwenOptions, seconds_per_unit=value).startswith(f"seconds_per_unit={value}: must be greater")


@pytest.mark.parametrize("value", ["1.0", "real", True, [1]])
def test_seconds_are_a_number(value):
    text = complaint(QwenOptions, seconds_per_unit=value)
    assert text == f"seconds_per_unit={value}: must be sampled or a number of seconds"


@pytest.mark.parametrize("value", [-1, True, "all", float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["store_gpu_gib", "store_cpu_gib"])
def test_what_a_store_may_hold(name, value):
    assert complaint(FlexSelectOptions, **{name: value}) == f"{name}={value}: must be a number of GiB, 0 for none"
    assert FlexSelectOptions.resolve({name: 0}, {}).to_dict()[name] == 0.0


@pytest.mark.parametrize("value", ["true", "yes", 1, 0, None])
def test_strict_is_true_or_false(value):
    assert complaint(FlexSelectOptions, strict=value) == f"strict={value}: must be true or false"


@pytest.mark.parametrize("path", [None, ""])
def test_lite_needs_a_checkpoint(path):
    text = complaint(FlexSelectOptions, selector="lite", selector_path=path)
    assert text == "selector=lite: give selector_path, the folder or hub name of a FlexSelect-Lite selector"
    assert FlexSelectOptions(selector="lite", selector_path="/weights").selector_path == "/weights"


@pytest.mark.parametrize("selector", ["flexselect", "uniform", "random", "none"])
def test_a_selector_checkpoint_goes_with_lite(selector):
    text = complaint(FlexSelectOptions, selector=selector, selector_path="/weights")
    assert text == f"selector_path=/weights: goes with selector=lite, not {selector}"


def test_dump_goes_to_a_folder(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    assert (
        complaint(FlexSelectOptions, dump_selection=str(file)) == f"dump_selection={file}: cannot be made (File exists)"
    )
    assert FlexSelectOptions(dump_selection=str(tmp_path / "new")).dump_selection == str(tmp_path / "new")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FlexSelectOptions(dump_selection="~/kept").dump_selection == str(tmp_path / "kept")


def test_given_wins_over_preset_over_default():
    preset = {"token_budget": 100, "reference_layer": 20, "fps": 2.0}
    options = FlexSelectOptions.resolve({"token_budget": 50, "pretrained": "x"}, preset)
    assert options.to_dict() == {**DEFAULTS, "token_budget": 50, "reference_layer": 20}


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
@pytest.mark.parametrize("name", ["selector_path", "reference_layer", "seconds_per_unit", "dump_selection"])
def test_the_word_none(name, word):
    """--model_args carries text, so None has to be written; it also takes back what a preset says."""
    assert getattr(QwenOptions.resolve({name: word}, {name: 3}), name) is None


def test_the_word_sampled():
    preset = {"seconds_per_unit": 1.0}
    assert QwenOptions.resolve({}, preset).seconds_per_unit == 1.0
    assert QwenOptions.resolve({"seconds_per_unit": "sampled"}, preset).seconds_per_unit is None


def test_none_is_a_selector_and_no_word_for_nothing():
    assert FlexSelectOptions.resolve({"selector": "none"}, {}).selector == "none"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("token_buget", "did you mean token_budget? "),
        ("selektor", "did you mean selector? "),
        ("max_frames", "did you mean max_num_frames? "),
        ("zzzzz", ""),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(given, hint):
    known = {*FlexSelectOptions.names(), "pretrained", "max_num_frames"}
    text = complaint(check_names, ["seed", given], known)
    assert text == f"unknown model argument {given}: {hint}known are {', '.join(sorted(known))}"


def test_known_names_pass():
    check_names(["seed", "pretrained"], ["pretrained", "seed", "fps"])
    with pytest.raises(OptionError, match="known are fps, pretrained"):
        check_names(["seed"], ["pretrained", "fps"])


@pytest.mark.parametrize("layer", [None, 28, 60])
def test_the_reference_layer_lies_in_the_model(layer):
    text = complaint(FlexSelectOptions(reference_layer=layer).check_model, 28)
    assert text.startswith(f"reference_layer={layer}: this model has layers 0 to 27 ")


def test_only_the_reference_selector_needs_a_layer():
    for layer in (0, 27):
        FlexSelectOptions(reference_layer=layer).check_model(28)
    for selector in ("uniform", "random", "none"):
        FlexSelectOptions(selector=selector, reference_layer=60).check_model(28)


@pytest.mark.parametrize(
    ("budget", "frames", "at_most", "sets"), [(7, 512, 64, 8), (8, 513, 64, 9), (1, 2, 1, 2), (15, 1024, 64, 16)]
)
def test_every_frame_set_gets_a_token(budget, frames, at_most, sets):
    options = FlexSelectOptions(token_budget=budget, max_frames_per_set=at_most)
    text = complaint(options.check_frames, frames)
    assert text.startswith(f"token_budget={budget}: {frames} frames make {sets} frame sets of at most {at_most},")
    assert text.endswith(f"give at least {sets}")
    FlexSelectOptions(token_budget=sets, max_frames_per_set=at_most).check_frames(frames)
    FlexSelectOptions(selector="none", token_budget=budget, max_frames_per_set=at_most).check_frames(frames)


@pytest.mark.parametrize("name", ["token_budget", "max_frames_per_set", "seed", "prefetch_videos"])
def test_a_preset_cannot_leave_a_number_out(name):
    with pytest.raises(OptionError, match=f"^{name}=None: must be a whole number"):
        FlexSelectOptions.resolve({}, {name: None})


@pytest.mark.parametrize("value", [True, ""])
def test_a_dump_needs_a_folder(value):
    with pytest.raises(OptionError, match=r"^dump_selection=.*: give a folder"):
        FlexSelectOptions.resolve({"dump_selection": value}, {})


def test_sampled_is_a_word_of_seconds_alone():
    with pytest.raises(OptionError, match=r"^reference_layer=sampled"):
        FlexSelectOptions.resolve({"reference_layer": "sampled"}, {"reference_layer": 20})


class Counting:
    """A selector that takes arguments."""

    arguments = ("every", "how", "scale", "also")


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr("lmms_flexselect.options.selector_class", lambda name: Counting)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("every:2;how:soft;scale:1e-3;also:true", {"every": 2, "how": "soft", "scale": 1e-3, "also": True}),
        (" every : -2 ; how : a:b ", {"every": -2, "how": "a:b"}),
        ("also:none", {"also": None}),
        ({"every": [1, 2]}, {"every": [1, 2]}),
        ({}, None),
        ("none", None),
        (None, None),
    ],
)
def test_arguments_of_a_selector(counting, given, found):
    options = FlexSelectOptions.resolve({"selector": "counting", "selector_args": given}, {})
    assert options.to_dict()["selector_args"] == found


@pytest.mark.parametrize("given", ["every", "every=2", ":2", "every:2;", "every:2;every:3", 5, True])
def test_arguments_of_a_selector_in_another_form(counting, given):
    text = complaint(FlexSelectOptions, selector="counting", selector_args=given)
    assert text == f"selector_args={given}: must be name:value;name:value, each name once"


def test_arguments_that_a_selector_does_not_take(counting):
    text = complaint(FlexSelectOptions, selector="counting", selector_args="evry:2")
    assert text == "selector_args=evry: selector=counting takes every, how, scale, also"


@pytest.mark.parametrize("selector", ["flexselect", "random", "none"])
def test_our_own_selectors_take_no_arguments(selector):
    text = complaint(FlexSelectOptions, selector=selector, selector_args="seed:2")
    assert text == f"selector_args=seed: selector={selector} takes none"


@pytest.mark.parametrize("value", [0, -1, "long", None, True, math.inf, math.nan])
def test_a_timeout_is_a_number_of_seconds(value):
    text = complaint(FlexSelectOptions, video_timeout=value)
    assert text == f"video_timeout={value}: must be a number of seconds greater than 0"
