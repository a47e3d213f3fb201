"""A question about a video, asked by the needle models: the needle lies in a cell that ranks high."""

from __future__ import annotations

import pytest

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.options import layer_numbers
from lmms_flexselect.tools.show.question import views_of_question

FRAMES = {
    "qwen2_5_vl_flexselect": "max_num_frames=32",
    "llava_vid_flexselect": "max_frames_num=64",
    "internvl_hf_flexselect": "num_frames=16",
}


def asked(video, question, model="qwen2_5_vl_flexselect", given="", compare=(), layers=None):
    """The one video that was asked about."""
    words = ["pretrained=needle,token_budget=16,max_frames_per_set=8", FRAMES.get(model), given]
    line = ",".join(word for word in words if word)
    (found,) = views_of_question(model, line, list(compare), video, question, layers, 1)
    return found


@pytest.mark.parametrize("model", FRAMES)
def test_the_needle_lies_where_relevance_is(needle, video, model):
    found = asked(video, needle["question"], model)
    (view,) = found.views
    assert view.kept.shape == (16, 2, 2)
    cell = (needle["unit"], *divmod(needle["quadrant"], 2))
    assert view.kept[cell]
    assert view.rank[cell] > 0.9
    # Qwen2.5-VL is read at its second layer, where every glyph ranks high.
    assert model.startswith("qwen") or view.frames_ranked()[0] == needle["unit"]
    assert view.answer.strip() == needle["shape"]
    assert view.kept_of_frames.sum() == 16
    assert view.tokens == 16 * (4 if model.startswith("qwen") else 6)
    assert view.name.startswith("flexselect, layer ")


def test_layers_and_other_selectors_beside(needle, video):
    found = asked(video, needle["question"], layers="0,2-3", compare=["selector=lite", "token_budget=32"])
    names = [view.name for view in found.views]
    assert names[:4] == ["flexselect, layer 0", "flexselect, layer 2", "flexselect, layer 3", "lite"]
    assert names[4].endswith("token_budget=32")
    assert [int(view.kept_of_frames.sum()) for view in found.views] == [16, 16, 16, 16, 32]
    ranks = [view.rank.tobytes() for view in found.views]
    assert len(set(ranks[:4])) == 4  # layers and selectors do not agree


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layers": "6"}, "--layers 6: this model has layers 0 to 5"),
        ({"layers": "0", "given": "selector=uniform"}, "--layers 0: goes with selector=flexselect, not uniform"),
        ({"model": "llava"}, "model=llava: must be one of .*qwen2_5_vl_flexselect"),
        ({"given": "selecter=lite"}, "unknown model argument selecter: did you mean selector?"),
    ],
)
def test_what_cannot_be_had(needle, video, arguments, says):
    with pytest.raises(FlexSelectError, match=says.replace("?", r"\?")) as caught:
        asked(video, needle["question"], **arguments)
    assert "\n" not in str(caught.value)


def test_a_video_that_is_none(needle, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    with pytest.raises(FlexSelectError, match=r"broken\.mp4: not a readable video"):
        asked(str(broken), needle["question"])
    with pytest.raises(FlexSelectError, match=r"none\.mp4: no such video file"):
        asked(str(tmp_path / "none.mp4"), needle["question"])


@pytest.mark.parametrize(("text", "numbers"), [("all", [0, 1, 2, 3]), ("2", [2]), ("0,2-3, 2", [0, 2, 3])])
def test_layer_numbers(text, numbers):
    assert layer_numbers(text, 4, f"--layers {text}") == numbers


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "0,4", "2-1"])
def test_what_are_no_layer_numbers(text):
    with pytest.raises(OptionError, match="--layers"):
        layer_numbers(text, 4, f"--layers {text}")
