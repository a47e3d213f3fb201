"""The entry point: light to import, and found by lmms-eval's registry."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import lmms_flexselect
from lmms_flexselect.manifests import manifests

QWEN = "qwen2_5_vl_flexselect"
QWEN3 = "qwen3_vl_flexselect"
LLAVA = "llava_vid_flexselect"
INTERNVL = ("internvl_hf_flexselect", "internvl2_flexselect")


def in_a_fresh_interpreter(code):
    """What `code` prints as JSON."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_importing_the_manifests_loads_nothing_heavy():
    """lmms-eval imports this while it is itself half imported, at every start, whatever model is asked for."""
    loaded = in_a_fresh_interpreter("import sys, json, lmms_flexselect.manifests; print(json.dumps(list(sys.modules)))")
    assert "lmms_flexselect.manifests" in loaded
    heavy = {"torch", "transformers", "lmms_eval", "numpy", "decord", "av", "qwen_vl_utils", "loguru"}
    assert not heavy & set(loaded)
    assert [name for name in loaded if name.startswith("lmms_flexselect")] == [
        "lmms_flexselect",
        "lmms_flexselect.manifests",
    ]


def test_the_entry_point_is_the_manifests():
    (ours,) = [e for e in entry_points(group="lmms_eval.models") if e.value.startswith("lmms_flexselect")]
    assert ours.load() is manifests
    assert {manifest.model_id for manifest in manifests()} == {QWEN, QWEN3, LLAVA, *INTERNVL}


@pytest.mark.parametrize("force_simple", [False, True])
def test_lmms_evals_registry_finds_both_classes_of_qwen(force_simple):
    """Through lmms-eval's own start-up: what ``--model`` resolves to, and that it is a class it accepts."""
    from lmms_eval.models import MODEL_REGISTRY_V2

    resolved = MODEL_REGISTRY_V2.resolve(QWEN, force_simple=force_simple)
    assert resolved.class_path.startswith("lmms_flexselect.families.qwen2_5_vl.lmms_eval.")
    assert resolved.class_name == ("Qwen2_5_VLFlexSelectSimple" if force_simple else "Qwen2_5_VLFlexSelect")
    model_class = MODEL_REGISTRY_V2.get_model_class(QWEN, force_simple=force_simple)
    assert model_class.__name__ == resolved.class_name
    assert model_class.is_simple is force_simple


@pytest.mark.parametrize("force_simple", [False, True])
def test_lmms_evals_registry_finds_the_one_class_of_llava(force_simple):
    """Upstream has no chat class of it."""
    from lmms_eval.models import MODEL_REGISTRY_V2

    resolved = MODEL_REGISTRY_V2.resolve(LLAVA, force_simple=force_simple)
    assert resolved.class_path == "lmms_flexselect.families.llava_video.lmms_eval.LlavaVidFlexSelect"
    model_class = MODEL_REGISTRY_V2.get_model_class(LLAVA, force_simple=force_simple)
    assert model_class.__name__ == resolved.class_name == "LlavaVidFlexSelect"
    assert model_class.is_simple
    # Stock models keep their names.
    assert MODEL_REGISTRY_V2.resolve("llava_vid").class_path.startswith("lmms_eval.")


def test_the_packages_names_are_loaded_on_first_use():
    assert {name: getattr(lmms_flexselect, name).__name__ for name in lmms_flexselect.__all__} == {
        name: name for name in lmms_flexselect.__all__
    }
    with pytest.raises(AttributeError, match="has no attribute 'FlexSelection'"):
        _ = lmms_flexselect.FlexSelection


@pytest.mark.parametrize("name", INTERNVL)
def test_lmms_evals_registry_finds_the_chat_classes_of_internvl(name):
    from lmms_eval.models import MODEL_REGISTRY_V2

    model_class = MODEL_REGISTRY_V2.get_model_class(name)
    assert model_class.upstream_name == name.removesuffix("_flexselect")
    assert not model_class.is_simple
