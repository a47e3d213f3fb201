from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace

import pytest

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families import spec
from lmms_flexselect.families.spec import FamilySpec, ModelName, families, family, family_of_model

THEIRS = FamilySpec("theirs", "Theirs", (ModelName("theirs_flexselect", chat="a:B"),), "frames", "a:R", "a:S")


@pytest.fixture
def registered(monkeypatch):
    """Register something of somebody else's."""

    def register(value):
        made = SimpleNamespace(name="theirs", value="their.package:SPEC", load=lambda: value)
        point = EntryPoint("theirs", value, spec.GROUP) if isinstance(value, str) else made
        monkeypatch.setattr(spec, "entry_points", lambda group: (*ours, point))
        families.cache_clear()

    ours = entry_points(group=spec.GROUP)
    yield register
    monkeypatch.undo()
    families.cache_clear()


@pytest.fixture
def warnings(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("lmms_flexselect.families.spec.logger.warning", said.append)
    return said


def test_somebody_elses_family_is_one_more(registered, warnings):
    ours = list(families())
    registered(THEIRS)
    assert list(families()) == [*ours, "theirs"]
    assert family("theirs") is family_of_model("theirs_flexselect") is THEIRS
    assert not warnings


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_package:SPEC", "(no_such_package:SPEC) is left out: cannot be imported (No module named"),
        ("json:NOTHING", "(json:NOTHING) is left out: cannot be imported (module 'json' has no attribute"),
        (dict, "(their.package:SPEC) is left out: is a type, not a FamilySpec"),
        (FamilySpec("qwen2_5_vl", "", (), "", "", ""), "is left out: the name qwen2_5_vl is taken"),
        (FamilySpec("x", "", (ModelName("llava_vid_flexselect"),), "", "", ""), ": the name llava_vid_flexselect is"),
    ],
)
def test_a_broken_one_leaves_ours_alone(registered, warnings, value, says):
    ours = list(families())
    registered(value)
    assert list(families()) == ours
    (warning,) = warnings
    assert says in warning
    assert "\n" not in warning


def test_a_name_that_nobody_registered():
    with pytest.raises(OptionError, match=r"^family=gpt: must be one of internvl_hf, llava_vid, "):
        family("gpt")
    assert family_of_model("llava_vid") is None


@pytest.mark.parametrize("layers", [1, 2, 24, 28, 36, 80])
def test_the_default_reference_layer(layers):
    for each in families().values():
        layer, measured = each.reference_layer(layers)
        assert 0 <= layer < layers
        assert measured == (layers in each.reference_layers)
