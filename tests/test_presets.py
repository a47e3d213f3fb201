"""What a checkpoint's name, depth and own configuration fill in."""

from __future__ import annotations

import pytest

from lmms_flexselect.options import FlexSelectOptions
from lmms_flexselect.presets import preset, reference_layer

# Paper, Qwen2.5-VL: 1024 frames at 2 fps at most, 308 x 560 pixels a frame, 7,040 tokens.
PUBLISHED = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 172480,
    "min_pixels": 100352,
}


@pytest.mark.parametrize(("layers", "layer"), [(28, 20), (80, 60)])
def test_measured_layers(layers, layer):
    assert reference_layer("qwen2_5_vl", layers) == (layer, True)


@pytest.mark.parametrize("layers", range(1, 101))
def test_any_depth_has_a_layer(layers):
    layer, measured = reference_layer("qwen2_5_vl", layers)
    assert 0 <= layer < layers
    assert measured == (layers in (28, 80))
    if not measured and layers > 1:
        assert abs(layer - layers * 20 / 28) <= 0.5


def test_another_familys_depth_is_not_taken_for_measured():
    assert reference_layer("another_family", 80) == (57, False)


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen2.5-VL-72B-Instruct",
        "/data/models/qwen2.5-vl-3b-instruct",
        "Qwen/Qwen2.5-VL-32B-Instruct-AWQ",
    ],
)
def test_published_settings_go_by_name(name):
    assert preset("qwen2_5_vl", name, None, 28) == {**PUBLISHED, "reference_layer": 20}


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-7B-Instruct", "my-model", "Qwen/Qwen2x5-VL-7B", "Qwen/Qwen2.5-7B"])
def test_other_names_get_a_layer_only(name):
    assert preset("qwen2_5_vl", name, None, 36) == {"reference_layer": 26}
    assert preset("qwen2_5_vl", name, {}, 36) == {"reference_layer": 26}


def test_published_settings_do_not_depend_on_each_other():
    """A caller may change what it got."""
    preset("qwen2_5_vl", "Qwen2.5-VL-7B", None, 28)["token_budget"] = 1
    assert preset("qwen2_5_vl", "Qwen2.5-VL-7B", None, 28)["token_budget"] == 7040


def test_the_checkpoints_own_entry_wins_over_its_name():
    own = {"reference_layer": 3, "token_budget": 64, "seed": 5}
    filled = preset("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", own, 28)
    assert filled == {**PUBLISHED, **own}
    assert own == {"reference_layer": 3, "token_budget": 64, "seed": 5}


def test_the_user_wins_over_all():
    own = {"reference_layer": 3, "token_budget": 64}
    filled = preset("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", own, 28)
    options = FlexSelectOptions.resolve({"token_budget": 32}, filled)
    assert (options.token_budget, options.reference_layer, options.max_frames_per_set) == (32, 3, 64)
