"""One model over several devices, as ``device_map=auto`` lays out a 72B model.

There is one device here. accelerate's hooks are the same for layers that lie elsewhere as for layers that are loaded
from disk when their turn comes, so half of the model is put on disk: code that reads weights past the hooks, or takes
the model to be in one place, finds meta tensors.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForImageTextToText

from lmms_flexselect import FlexSelect, Qwen2_5_VL


@pytest.fixture
def inputs(random_checkpoint):
    import numpy as np
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(random_checkpoint)
    frames = np.random.default_rng(0).integers(0, 255, (24, 56, 56, 3), dtype=np.uint8)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is it?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    return processor(text=[text], videos=[frames], return_tensors="pt")


def answer(model, inputs):
    family = Qwen2_5_VL(model, seconds_per_unit=1.0)
    (prompt,) = family.prompts(inputs)
    selection = FlexSelect(family.reference_layer(4), token_budget=12, max_frames_per_set=4)(prompt)
    (new,) = family.generate([selection.prompt], max_new_tokens=5, do_sample=False)
    return selection, new


def test_a_model_with_layers_elsewhere_selects_and_answers_the_same(random_checkpoint, inputs, tmp_path):
    whole = AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=torch.float32).eval()
    want, expected = answer(whole, inputs)

    split = AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=torch.float32).eval()
    elsewhere = ("model.language_model.layers.2", "model.language_model.layers.4", "model.visual.blocks.1")
    places = {name: "disk" if name in elsewhere else "cpu" for name in leaves(split)}
    split = dispatch_model(split, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert split.model.language_model.layers[4].self_attn.q_proj.weight.device.type == "meta"
    got, actual = answer(split, inputs)
    assert torch.equal(got.keep, want.keep)
    torch.testing.assert_close(got.scores, want.scores)
    assert torch.equal(actual, expected)


def leaves(model):
    """Modules that accelerate may place: layers and blocks whole, and what is beside them."""
    inside = ("model.language_model.layers.", "model.visual.blocks.")
    names = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) and name.count(".") == prefix.count(".") for prefix in inside) or (
            not name.startswith(inside)
            and not list(module.children())
            and (list(module.parameters()) or list(module.buffers()))
        ):
            names.append(name)
    return names
