"""What a checkpoint's name, depth and own configuration fill in."""

from __future__ import annotations

import pytest

from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.options import FlexSelectOptions
from lmms_flexselect.presets import preset

# Paper, Qwen2.5-VL: 1024 frames at 2 fps at most, 308 x 560 pixels a frame, 7,040 tokens.
PUBLISHED = {
    "token_budget": 7040,
    "max_num_frames": 1024,
    "fps": 2.0,
    "max_pixels": 172480,
    "min_pixels": 100352,
}
# Paper, LLaVA-Video: 512 frames of 14 rows of 15 tokens (bilinear pooling), 32 frames' worth of them kept.
PUBLISHED_LLAVA = {"max_frames_num": 512, "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}
LLAVA = {"token_budget": 6720, "conv_template": "qwen_1_5"}


@pytest.mark.parametrize(
    ("family", "layers", "layer"),
    [("qwen2_5_vl", 28, 20), ("qwen2_5_vl", 80, 60), ("llava_vid", 28, 19), ("llava_vid", 80, 60)],
)
def test_measured_layers(family, layers, layer):
    assert family_named(family).reference_layer(layers) == (layer, True)


@pytest.mark.parametrize(("family", "of_28"), [("qwen2_5_vl", 20), ("llava_vid", 19)])
@pytest.mark.parametrize("layers", range(1, 101))
def test_any_depth_has_a_layer(layers, family, of_28):
    layer, measured = family_named(family).reference_layer(layers)
    assert 0 <= layer < layers
    assert measured == (layers in (28, 80))
    if not measured and layers > 1:
        assert abs(layer - layers * of_28 / 28) <= 0.5


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


@pytest.mark.parametrize(
    ("name", "layers", "layer"),
    [
        ("lmms-lab/LLaVA-Video-7B-Qwen2", 28, 19),
        ("lmms-lab/LLaVA-Video-72B-Qwen2", 80, 60),
        ("/data/models/llava-video-7b-qwen2-video-only/", 28, 19),
    ],
)
def test_published_settings_of_llava_video(name, layers, layer):
    assert preset("llava_vid", name, None, layers) == {**LLAVA, **PUBLISHED_LLAVA, "reference_layer": layer}


@pytest.mark.parametrize("name", ["lmms-lab/llava-onevision-qwen2-7b-ov", "my-model", "LLaVA-NeXT-Video-7B"])
def test_other_llavas_get_the_budget_the_template_and_a_layer(name):
    """Upstream's own template is Vicuna's, which no checkpoint of this layout was trained with."""
    assert preset("llava_vid", name, None, 6) == {**LLAVA, "reference_layer": 4}


@pytest.mark.parametrize(
    ("family", "name", "budget"),
    [("qwen2_5_vl", "Qwen2.5-VL-7B", 7040), ("llava_vid", "LLaVA-Video-7B", 6720), ("llava_vid", "x", 6720)],
)
def test_published_settings_do_not_depend_on_each_other(family, name, budget):
    """A caller may change what it got."""
    preset(family, name, None, 28)["token_budget"] = 1
    assert preset(family, name, None, 28)["token_budget"] == budget


def test_one_familys_names_mean_nothing_to_another():
    assert preset("qwen2_5_vl", "lmms-lab/LLaVA-Video-7B-Qwen2", None, 28) == {"reference_layer": 20}
    assert preset("llava_vid", "Qwen/Qwen2.5-VL-7B-Instruct", None, 28) == {**LLAVA, "reference_layer": 19}


def test_the_checkpoints_own_entry_wins_over_its_name():
    own = {"reference_layer": 3, "token_budget": 64, "seed": 5}
    filled = preset("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", own, 28)
    assert filled == {**PUBLISHED, **own}
    assert own == {"reference_layer": 3, "token_budget": 64, "seed": 5}


def test_the_checkpoints_own_entry_wins_over_its_family():
    own = {"token_budget": 96, "conv_template": "qwen_2", "max_frames_num": 1024}
    filled = preset("llava_vid", "lmms-lab/LLaVA-Video-7B-Qwen2", own, 28)
    assert filled == {**PUBLISHED_LLAVA, **own, "reference_layer": 19}


def test_the_user_wins_over_all():
    own = {"reference_layer": 3, "token_budget": 64}
    filled = preset("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", own, 28)
    options = FlexSelectOptions.resolve({"token_budget": 32}, filled)
    assert (options.token_budget, options.reference_layer, options.max_frames_per_set) == (32, 3, 64)
