import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lmms_flexselect import Qwen2_5_VL
from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.lite.selector import Lite
from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.method.registry import selector_class, selector_names
from lmms_flexselect.method.selectors import Everything, Random, ReferenceLayer, Uniform
from tests.support.random_models import qwen2_5_vl, video_inputs

BUILT_IN = {"flexselect": ReferenceLayer, "lite": Lite, "none": Everything, "random": Random, "uniform": Uniform}


class FirstTokens:
    """Keeps the first tokens of every video."""

    def __init__(self, change=lambda keep: keep, scores=None):
        self.change, self.scores = change, scores

    @classmethod
    def from_options(cls, options, family):
        return cls()

    def __call__(self, prompt, columns, sets, quotas):
        keep = torch.zeros(len(columns), dtype=torch.bool)
        keep[: sum(quotas)] = True
        return self.change(keep), self.scores


@pytest.fixture(scope="module")
def prompt_of_frames():
    """Four frames of six visual tokens."""
    (prompt,) = Qwen2_5_VL(qwen2_5_vl(0)).prompts(video_inputs([[4, ("video", (4, 2, 3)), 6]], [1.5], seed=0))
    return prompt


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("somebodys_selectors")
    vars(made).update(FirstTokens=FirstTokens, NoSelector=object)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    selector_class.cache_clear()
    return made


def test_the_built_in_ones():
    assert selector_names() == tuple(BUILT_IN)
    assert {name: selector_class(name) for name in BUILT_IN} == BUILT_IN


def test_an_earlier_name():
    assert selector_class("reference") is ReferenceLayer


def test_they_build_themselves():
    options = SimpleNamespace(seed=7, reference_layer=3, reduction="mean")
    family = SimpleNamespace(reference_layer=lambda *given: given)
    assert selector_class("random").from_options(options, family) == Random(7)
    assert selector_class("uniform").from_options(options, family) == Uniform()
    assert selector_class("none").from_options(options, family) is None
    assert selector_class("flexselect").from_options(options, family) == (3, "mean")


def test_a_class_of_somebody_elses(module):
    assert selector_class("somebodys_selectors:FirstTokens") is FirstTokens


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("refrence", "must be one of flexselect, lite, none, random, uniform, or a class as package.module:Class"),
        ("", "must be one of"),
        ("nowhere.at_all:Class", "nowhere.at_all:Class cannot be imported (No module named 'nowhere')"),
        ("somebodys_selectors:Missing", "somebodys_selectors:Missing cannot be imported (module"),
        ("somebodys_selectors:NoSelector", "somebodys_selectors:NoSelector has no from_options, so it is no selector"),
    ],
)
def test_none_of_the_kind(module, name, says):
    with pytest.raises(OptionError, match=re.escape(f"selector={name}: {says}")) as caught:
        selector_class(name)
    assert "\n" not in str(caught.value)


NAN = torch.full((24,), torch.nan)


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        (FirstTokens(lambda keep: keep[1:]), "keep must be bool (24,), and is torch.bool (23,)"),
        (FirstTokens(lambda keep: keep.long()), "keep must be bool (24,), and is torch.int64 (24,)"),
        (FirstTokens(lambda keep: keep.tolist()), "keep must be bool (24,), and is list"),
        (FirstTokens(lambda keep: keep.to("meta")), "keep must lie on the CPU, and lies on meta"),
        (FirstTokens(lambda keep: ~keep), "keeps 16 tokens of a video, 8 are allowed"),
        (FirstTokens(scores=NAN), "its scores are NaN"),
        (FirstTokens(scores=torch.zeros(3)), "scores must be a tensor (24,) or None, and are (3,)"),
        (FirstTokens(scores=[0.0] * 24), "scores must be a tensor (24,) or None, and are list"),
    ],
)
def test_a_selector_that_breaks_its_contract_is_named(prompt_of_frames, selector, says):
    with pytest.raises(FlexSelectError) as caught:
        FlexSelect(selector, 8, 2, round_budget=False)(prompt_of_frames)
    assert str(caught.value) == f"selector {FirstTokens.__module__}:FirstTokens: {says}"


def test_one_that_does_not_is_followed(prompt_of_frames):
    scores = torch.linspace(0, 1, 24, dtype=torch.float64)
    selection = FlexSelect(FirstTokens(scores=scores), 8, 2, round_budget=False)(prompt_of_frames)
    assert selection.visual_kept.tolist() == [True] * 8 + [False] * 16
    assert torch.equal(selection.scores, scores.float())
