"""What we need of lmms-eval's insides: there as installed, and missed in one line where a release has changed it."""

from __future__ import annotations

import importlib
import inspect

import pytest
from lmms_eval.api.model import lmms

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.spec import families, load
from lmms_flexselect.models import contract
from tests.support.evaluate import build

CLASSES = {
    path.rpartition(":")[2]: path
    for spec in families().values()
    for model in spec.models
    for path in (model.chat, model.simple)
    if path is not None
}


def refused(match, check, *arguments):
    with pytest.raises(FlexSelectError, match=rf"^lmms-eval \S+ is not as this package knows it: {match}") as caught:
        check(*arguments)
    assert "\n" not in str(caught.value)


def upstream_of(model_class):
    return next(base for base in model_class.__mro__ if base.__module__.startswith("lmms_eval."))


def test_the_installed_release_is_as_it_was_known():
    contract.check_lmms_eval()


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_fits_its_upstream_class(name):
    contract.check_class(load(CLASSES[name]))


def replace_function(monkeypatch, path, function):
    """Put a function where a path of the contract points to."""
    module, _, names = path.partition(":")
    *holders, last = names.split(".")
    holder = importlib.import_module(module)
    for name in holders:
        holder = getattr(holder, name)
    monkeypatch.setattr(holder, last, function)


@pytest.mark.parametrize("change", ["gone", "renamed", "one more"])
@pytest.mark.parametrize("path", contract.PARAMETERS)
def test_other_parameters_are_seen(monkeypatch, path, change):
    names = list(contract.PARAMETERS[path])
    if change == "gone":
        names.pop()
    elif change == "renamed":
        names[-1] = "another"
    else:
        names.append("another")
    changed = eval(f"lambda {', '.join(names)}: None")
    replace_function(monkeypatch, path, changed)
    refused(rf"{path} takes \({', '.join(names)}\), not ", contract.check_lmms_eval)


@pytest.mark.parametrize("path", contract.PARAMETERS)
def test_a_further_parameter_with_a_default_is_no_change(monkeypatch, path):
    changed = eval(f"lambda {', '.join(contract.PARAMETERS[path])}, another=None: None")
    replace_function(monkeypatch, path, changed)
    monkeypatch.setattr(contract, "NAMES", {})
    contract.check_lmms_eval()


@pytest.mark.parametrize("path", contract.NAMES)
def test_code_that_does_not_use_what_we_set_is_seen(monkeypatch, path):
    names = contract.PARAMETERS.get(path, ("self",))
    replace_function(monkeypatch, path, eval(f"lambda {', '.join(names)}: None"))
    monkeypatch.setattr(contract, "PARAMETERS", {})
    refused(f"{path} does not use {contract.NAMES[path][0]}", contract.check_lmms_eval)


def test_what_is_gone_is_seen(monkeypatch):
    from lmms_eval.caching.response_cache import ResponseCache

    monkeypatch.delattr(ResponseCache, "_merge_run_to_root")
    refused(r"there is no lmms_eval\S+:ResponseCache._merge_run_to_root", contract.check_lmms_eval)


@pytest.mark.parametrize("hook", ["_checkpoint_config", "_loaders", "_selecting", "_frames", "family", "resolved"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_name_of_ours_that_upstream_takes_is_seen(monkeypatch, name, hook):
    model_class = load(CLASSES[name])
    monkeypatch.setattr(upstream_of(model_class), hook, None, raising=False)
    refused(rf"\S+ has a {hook} of its own, which is a name of {name}'s too", contract.check_class, model_class)


def test_a_name_that_upstreams_constructor_sets_is_seen(monkeypatch):
    """As `_config` was: a method of ours, and an attribute of upstream's objects."""
    model_class = load(CLASSES["Qwen2_5_VLFlexSelect"])

    def another(self):
        self._loaders = None

    monkeypatch.setattr(upstream_of(model_class), "another", another, raising=False)
    refused(r"\S+ has a _loaders of its own", contract.check_class, model_class)


def test_an_override_with_other_parameters_is_seen(monkeypatch):
    model_class = load(CLASSES["LlavaVidFlexSelect"])
    monkeypatch.setattr(upstream_of(model_class), "load_video", lambda self, path, frames: None)
    refused(
        r"\S+LlavaVid.load_video takes \(self, path, frames\), not \(self, video", contract.check_class, model_class
    )


def test_an_override_of_nothing_is_seen(monkeypatch):
    model_class = load(CLASSES["LlavaVidFlexSelect"])
    monkeypatch.delattr(upstream_of(model_class), "load_video")
    refused(r"\S+LlavaVid has no load_video, which", contract.check_class, model_class)


def test_what_is_replaced_in_a_module_must_be_there(monkeypatch):
    model_class = load(CLASSES["Qwen3VLFlexSelectSimple"])
    monkeypatch.delattr(model_class._upstream_module, "ThreadPoolExecutor")
    refused(r"lmms_eval\S+ has no ThreadPoolExecutor, which is replaced there", contract.check_class, model_class)


def test_a_collator_that_cannot_be_replaced_is_seen(monkeypatch):
    def generate_until(self, requests):
        return Collator(requests)  # type: ignore[name-defined]  # noqa: F821

    model_class = load(CLASSES["Qwen2_5_VLFlexSelect"])
    monkeypatch.setattr(upstream_of(model_class), "generate_until", generate_until)
    refused(r"\S+generate_until does not find Collator in utils", contract.check_class, model_class)


def test_a_run_ends_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(lmms, "clean", lambda self, at_once: None)
    refused(r"lmms_eval.api.model:lmms.clean takes", build, "llava_vid_flexselect", False)


def test_signatures_are_looked_up_behind_our_own_wrapper():
    from lmms_eval.caching.response_cache import ResponseCache

    from lmms_flexselect.models.upstream import mend_response_cache

    mend_response_cache()
    assert hasattr(ResponseCache.execute, "__wrapped__")
    assert "_model_fingerprint_hash" in inspect.unwrap(ResponseCache.execute).__code__.co_names
    contract.check_lmms_eval()
