"""One model over several devices, as ``device_map=auto`` lays out a 72B model.

There is one device here. accelerate's hooks are the same for layers that lie elsewhere as for layers that are loaded
from disk when their turn comes, so half of the model is put on disk: code that reads weights past the hooks, or takes
the model to be in one place, finds meta tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_flexselect import FlexSelect, Qwen2_5_VL
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.llava_video.family import LlavaVideo
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from tests.support.internvl_checkpoint import write_original
from tests.support.internvl_inputs import batch, tokens_of
from tests.support.internvl_tokenizers import vocabulary
from tests.support.llava_checkpoint import write_checkpoint
from tests.support.random_models import llava_inputs

SIGLIP = "model.vision_tower.vision_tower.vision_model"
# accelerate's own layout names parameters beside the modules, LLaVA's newline for one, and then warns of the name.
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match")


@dataclass
class Case:
    """A model to load, how it is read, and what of it lies elsewhere."""

    load: Callable[..., Any]
    family: Callable[[Any], Any]
    inputs: Any
    elsewhere: tuple[str, ...]
    layer: int = 4


@pytest.fixture(scope="module")
def qwen2_5_vl(random_checkpoint):
    processor = AutoProcessor.from_pretrained(random_checkpoint)
    frames = np.random.default_rng(0).integers(0, 255, (24, 56, 56, 3), dtype=np.uint8)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is it?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    return Case(
        lambda: AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=torch.float32).eval(),
        lambda model: Qwen2_5_VL(model, seconds_per_unit=1.0),
        processor(text=[text], videos=[frames], return_tensors="pt"),
        ("model.language_model.layers.2", "model.language_model.layers.4", "model.visual.blocks.1"),
    )


@pytest.fixture(scope="module")
def llava_video(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "llava_video")

    def load(**kwargs):
        config = LlavaVideoConfig.from_checkpoint(str(folder))
        return LlavaVideoForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, **kwargs).eval()

    decoder = ("model.embed_tokens", "model.layers.2", "model.layers.4", "lm_head")
    vision = (f"{SIGLIP}.embeddings", f"{SIGLIP}.encoder.layers.1", "model.mm_projector.2")
    return Case(
        load,
        lambda model: LlavaVideo(model, frames_per_chunk=7),
        llava_inputs([[4, ("video", (24, 56, 56)), 6]]),
        (*decoder, *vision, "model.image_newline"),
    )


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    folder = str(write_original(tmp_path_factory.mktemp("checkpoints") / "internvl"))
    special = vocabulary("internlm2")[1]
    decoder = ("model.language_model.embed_tokens", "model.language_model.layers.1", "lm_head")
    tower = ("embeddings.patch_embeddings.projection", "encoder.layer.1")
    vision = (*(f"model.vision_tower.{name}" for name in tower), "model.multi_modal_projector.linear_2")
    return Case(
        lambda **kwargs: load_model(folder, torch.float32, **kwargs).eval(),
        lambda model: InternVL(model, (special["<img>"], special["</img>"]), tiles_per_chunk=7),
        batch([tokens_of([4, ("image", 2), ("video", 24), 6], special, True)], [0]),
        (*decoder, *vision),
        layer=2,
    )


def answer(case, model):
    family = case.family(model)
    (prompt,) = family.prompts(case.inputs)
    selection = FlexSelect(family.reference_layer(case.layer), token_budget=12, max_frames_per_set=4)(prompt)
    (new,) = family.generate([selection.prompt], max_new_tokens=5, do_sample=False)
    return selection, new


def assert_same_answer(case, split):
    want, expected = answer(case, case.load())
    got, actual = answer(case, split)
    assert 0 < want.kept_tokens < want.visual_tokens
    assert torch.equal(got.keep, want.keep)
    torch.testing.assert_close(got.scores, want.scores)
    torch.testing.assert_close(got.prompt.inputs_embeds, want.prompt.inputs_embeds)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_video", "internvl"])
def test_a_model_with_layers_elsewhere_selects_and_answers_the_same(name, request, tmp_path):
    case = request.getfixturevalue(name)
    split = case.load()
    places = {name: "disk" if name in case.elsewhere else "cpu" for name in placeable(split)}
    assert places.keys() >= set(case.elsewhere)
    split = dispatch_model(split, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    for layer in case.elsewhere:
        # accelerate moves modules, and leaves a bare parameter such as LLaVA's newline where the module is.
        if layer != "model.image_newline":
            assert {p.device.type for p in split.get_submodule(layer).parameters()} == {"meta"}, layer
    assert_same_answer(case, split)


@pytest.mark.parametrize(
    ("name", "share", "expected"),
    [
        # With a third of the room only the first decoder layer has a place; with nearly all, the tower is torn apart.
        ("llava_video", 0.3, ("model.mm_projector.0.weight", f"{SIGLIP}.encoder.layers.0.mlp.fc1.weight")),
        ("llava_video", 0.95, (f"{SIGLIP}.encoder.layers.1.mlp.fc1.weight",)),
        # Here the tower comes first: its class embedding alone has a place, one block, all of it and one decoder layer.
        ("internvl", 0.2, ("model.vision_tower.embeddings.patch_embeddings.projection.weight",)),
        ("internvl", 0.3, ("model.vision_tower.encoder.layer.1.mlp.fc1.weight",)),
        ("internvl", 0.9, ("model.language_model.layers.1.mlp.up_proj.weight",)),
    ],
)
def test_a_model_that_is_laid_out_automatically(name, share, expected, request, tmp_path):
    case = request.getfixturevalue(name)
    room = int(share * sum(weight.numel() * weight.element_size() for weight in case.load().parameters()))
    split = case.load(device_map="auto", max_memory={"cpu": room}, offload_folder=tmp_path)
    elsewhere = {name for name, weight in split.named_parameters() if weight.device.type == "meta"}
    for whole in placeable(split):
        of_module = {name for name, _ in split.named_parameters() if name == whole or name.startswith(f"{whole}.")}
        assert of_module <= elsewhere or not of_module & elsewhere, whole
    assert {*expected, "lm_head.weight"} <= elsewhere
    assert len(elsewhere) < len(list(split.parameters()))
    assert_same_answer(case, split)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_llava_video_model_that_is_laid_out_automatically_judges_the_same(llava_video, tmp_path, share):
    room = int(share * sum(weight.numel() * weight.element_size() for weight in llava_video.load().parameters()))
    split = llava_video.load(device_map="auto", max_memory={"cpu": room}, offload_folder=tmp_path)
    family = llava_video.family(split)
    (prompt,) = family.prompts(llava_video.inputs)
    continuation = torch.tensor([5, 17, 3])
    whole_family = llava_video.family(llava_video.load())
    torch.testing.assert_close(
        family.continuation_logits(prompt, continuation), whole_family.continuation_logits(prompt, continuation)
    )


def placeable(model):
    """What accelerate may place: the modules that must stay whole, and the leaves and bare parameters beside them."""
    names: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{whole}.") for whole in names):
            continue
        if type(module).__name__ in model._no_split_modules or not list(module.children()):
            if list(module.parameters()) or list(module.buffers()):
                names.append(name)
        else:
            names += [f"{name}.{bare}" for bare, _ in module.named_parameters(recurse=False)]
    return names
