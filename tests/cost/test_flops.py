"""The model of the work against forward passes that are counted, kernel by kernel, and against parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel

from lmms_flexselect.cost.flops import (
    PARTS,
    Cost,
    Peaks,
    Request,
    causal_pairs,
    decoder_layers,
    scoring,
    sharing_weights,
    tower_unit,
    work,
)
from lmms_flexselect.cost.shape import DecoderShape, ModelShape, SelectorShape
from lmms_flexselect.families.internvl.config import read_config
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.llava_video.family import LlavaVideo
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig
from lmms_flexselect.families.qwen2_5_vl.family import Qwen2_5_VL
from lmms_flexselect.families.spec import family as family_spec
from lmms_flexselect.families.spec import load
from lmms_flexselect.lite.checkpoint import load_selector
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.tools.doctor.checkpoints import write_stand_in
from tests.support.internvl_inputs import batch, tokens_of
from tests.support.internvl_tokenizers import vocabulary
from tests.support.internvl_weights import random_native
from tests.support.random_models import llava_inputs, llava_video, qwen2_5_vl, video_inputs
from tests.support.selectors import FAMILIES, TOWERS, write_selector_folder

UNITS, PER_SET, BUDGET, ITEM = 5, 2, 12, 4
BEFORE, BEHIND = 3, 4
GRID = (12, 20)  # patches of a Qwen2.5-VL frame: windows of 8 are cut off at its edges, both ways


NEW_ENOUGH = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.10"), reason="older transformers multiply matrices elsewhere too"
)


def shape(name: str, config: Any, grid: Any = None, selector: SelectorShape | None = None) -> ModelShape:
    """Of a family's model, by what its spec says."""
    return dataclasses.replace(load(family_spec(name).shape)(config, {}, grid=grid), selector=selector)


def made(name: str):
    """A family over a tiny model with eager attention, whose products are all counted, and one sample's inputs."""
    if name == "llava_vid":
        model = llava_video(attention="eager")
        return LlavaVideo(model), llava_inputs([[BEFORE, ("video", (UNITS, 70, 70)), BEHIND]])
    if name == "qwen2_5_vl":
        model = qwen2_5_vl(attention="eager")
        rows, columns = (side // 2 for side in GRID)
        # A mark of its own is put on either side of the video.
        return Qwen2_5_VL(model), video_inputs([[BEFORE - 1, ("video", (UNITS, rows, columns)), BEHIND - 1]])
    model = random_native("internlm2", "300m")
    model.config.text_config.max_position_embeddings = 4096  # below it positions do not depend on the length
    model.set_attn_implementation("eager")
    special = vocabulary("internlm2")[1]
    marks = (special["<img>"], special["</img>"])
    inputs = batch([tokens_of([BEFORE, ("video", UNITS), BEHIND], special, numbered=False)], [0])
    for own in ("ids", "video", "frame"):
        inputs[f"selector_{own}"] = inputs["input_ids" if own == "ids" else f"token_{own}"]
    family = InternVL(model, marks, selector_mark_ids=(special["<IMG_CONTEXT>"], *marks))
    family.model.generation_config.pad_token_id = 0
    return family, inputs


def counted(call):
    """FLOPs of a call by torch's counter, and what it returns."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = call()
    return counter.get_total_flops(), result


def masked(decoder: DecoderShape, layers: int, tokens: int) -> int:
    """What the counter sees of causal attention over a prompt and the model rightly does not."""
    return layers * 4 * decoder.heads * decoder.head_size * (tokens**2 - causal_pairs(tokens))


@NEW_ENOUGH
@pytest.mark.parametrize("selecting", ["none", "flexselect", "lite"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_costs_what_is_counted(name, selecting, tmp_path):
    """Every product of a sample, from its pixels to its first token."""
    family, inputs = made(name)
    config = family.model.config
    decoder, layer, own = DecoderShape.of(config.get_text_config()), None, None
    selector = None
    if selecting == "flexselect":
        layer = 2
        selector = family.reference_layer(layer)
    if selecting == "lite":
        size = vocabulary("internlm2")[0] if name == "internvl_hf" else 96
        folder = write_selector_folder(tmp_path / "selector", TOWERS[name], vocabulary_size=size)
        own = load_selector(str(folder), TOWERS[name], torch.float32, attn_implementation="eager")
        selector = family.lite(own)
    grid = GRID if name == "qwen2_5_vl" else None

    vision, (prompt,) = counted(lambda: family.prompts(inputs))
    budget = BUDGET if selector else int(prompt.visual.sum())
    select = FlexSelect(selector, budget, PER_SET, round_budget=False)
    scored, selection = counted(lambda: select(prompt))
    answer, _ = counted(lambda: family.generate([selection.prompt], max_new_tokens=1, do_sample=False))

    request = Request(UNITS, PER_SET, selection.kept_tokens, BEFORE, BEHIND, item=ITEM)
    own_shape = None if own is None else SelectorShape.of(type(own), own.config)
    model_shape = shape(name, config, grid, own_shape)
    costs, tokens = work(model_shape, request, layer), model_shape.tokens
    assert model_shape.parameters == sum(p.numel() for p in family.model.parameters())
    assert tokens * UNITS == selection.visual_tokens
    assert costs["vision"].flops == vision
    assert costs["prefill"].flops + costs["first token"].flops == answer - masked(
        decoder, decoder.layers, len(selection.prompt)
    )
    if selector is None:
        assert costs["scoring"] == costs["selection"] == Cost()
        return
    scorer = own_shape.decoder if own_shape else decoder
    layer = scorer.layers - 1 if layer is None else layer
    unseen = 0
    for units in (2, 2, 1):
        prefix = BEFORE + units * tokens
        whole = prefix + BEHIND
        # The text's queries meet all keys where the counter looks, below the reference layer and there.
        layers_below = layer * 4 * (prefix**2 + BEHIND * whole - causal_pairs(whole))
        unseen += scorer.heads * scorer.head_size * (layers_below + 2 * (BEHIND * whole - text_pairs(prefix)))
    assert costs["scoring"].flops == scored - unseen


def text_pairs(prefix: int) -> int:
    """Keys that the queries behind a prefix meet, one by one."""
    return sum(range(prefix + 1, prefix + BEHIND + 1))


@pytest.mark.parametrize(
    ("name", "published", "billions"),
    [
        ("llava_vid", "lmms-lab/LLaVA-Video-7B-Qwen2", 6.5),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", 6.5),
        ("internvl_hf", "OpenGVLab/InternVL2_5-8B", 7.0),
    ],
)
def test_a_published_decoders_weights_are_read_once(name, published, billions, tmp_path):
    """The matrices of all layers and no more; and two FLOPs a weight and token, beside attention."""
    place = str(write_stand_in(published, tmp_path))
    readers: dict[str, Any] = {
        "llava_vid": LlavaVideoConfig.from_checkpoint,
        "qwen2_5_vl": lambda place: checkpoint_config(place, "qwen2_5_vl"),
        "internvl_hf": read_config,
    }
    decoder = DecoderShape.of(readers[name](place).get_text_config())
    cost = decoder_layers(decoder, decoder.layers, tokens=1, item=1)
    assert cost.weights == pytest.approx(billions * 1e9, rel=0.01)
    assert cost.flops == 2 * cost.weights + 4 * decoder.layers * decoder.heads * decoder.head_size


def test_weights_are_those_of_the_matrices():
    model = llava_video()
    layers = model.model.layers
    matrices = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    decoder = DecoderShape.of(model.config)
    assert decoder_layers(decoder, len(layers), 9, ITEM).weights == ITEM * matrices
    tower = model.model.vision_tower["vision_tower"]["vision_model"]
    inner = [p for name, p in tower.named_parameters() if p.dim() > 1 and "position" not in name]
    assert tower_unit(shape("llava_vid", model.config).tower, ITEM).weights == ITEM * sum(p.numel() for p in inner)


@NEW_ENOUGH
def test_experts_cost_what_is_counted():
    """Layers 0 and 1 have one MLP, 2 and 4 too, 3 and 5 have experts."""
    config = Qwen3VLMoeTextConfig(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=3,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    )
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    model, decoder, tokens = Qwen3VLMoeTextModel(config).eval(), DecoderShape.of(config), 50
    seen, _ = counted(lambda: model(inputs_embeds=torch.randn(1, tokens, 32), use_cache=False))
    cost = decoder_layers(decoder, 6, tokens, ITEM)
    assert cost.flops == seen - masked(decoder, 6, tokens)
    matrices = [sum(p.numel() for p in layer.parameters() if p.dim() > 1) for layer in model.layers]
    assert cost.weights == ITEM * sum(matrices)
    assert decoder_layers(decoder, 4, tokens, ITEM).weights == ITEM * sum(matrices[:4])
    idle = 2 * 5 * 3 * 24 * 32  # two layers, of whose eight experts one token reaches three
    assert decoder_layers(decoder, 6, 1, ITEM).weights == ITEM * (sum(matrices) - idle)


def test_frame_sets_share_the_weights_and_nothing_else():
    config = llava_video().config
    decoder = DecoderShape.of(config)
    one = work(shape("llava_vid", config), Request(4, 4, 6, BEFORE, BEHIND), layer=1)["scoring"]
    two = work(shape("llava_vid", config), Request(8, 4, 6, BEFORE, BEHIND), layer=1)["scoring"]
    assert two == one.times(2)
    assert one.weights < scoring(decoder, 2, 1, BEHIND, 2).weights
    assert sharing_weights([]) == Cost()


def test_nothing_is_scored_where_everything_is_kept():
    costs = work(shape("llava_vid", llava_video().config), Request(4, 4, 4 * 12, BEFORE, BEHIND), layer=1)
    assert set(costs) == set(PARTS)
    assert costs["scoring"] == costs["selection"] == Cost()


def test_the_floor_is_the_slower_of_the_two():
    peaks = Peaks(flops=100, bandwidth=10)
    assert Cost(flops=500, weights=20).seconds(peaks) == 5
    assert Cost(flops=500, weights=20, moved=60).seconds(peaks) == 8


def test_labels_are_read_with_their_frames():
    """As many more text tokens a frame in each set's prompt, and all of them in the answer's."""
    model, units, label = shape("llava_vid", llava_video().config), 8, 3
    decoder, tokens = model.decoder, model.tokens
    costs = work(model, Request(units, 4, 6, BEFORE, BEHIND, label), layer=1)
    a_set = scoring(decoder, 1, BEFORE + 4 * (tokens + label), BEHIND, 2)
    assert costs["scoring"] == a_set.times(2) + Cost(moved=4 * units * tokens)
    prompt = BEFORE + 6 + units * label + BEHIND
    assert costs["prefill"] == decoder_layers(decoder, decoder.layers, prompt, 2)


def test_bytes_at_the_layer_that_scores():
    """Hidden states in, keys written and read; weights of the queries' and keys' projections; below, values and hidden
    states out too."""
    model = shape("llava_vid", llava_video().config)
    decoder = model.decoder
    keys, queries = decoder.key_heads * decoder.head_size, decoder.heads * decoder.head_size
    cost = scoring(decoder, 0, 10, 4, ITEM)
    assert cost.moved == 14 * (decoder.hidden + 2 * keys) * ITEM
    assert cost.weights == (keys + queries) * decoder.hidden * ITEM
    below = scoring(decoder, 2, 10, 4, ITEM).moved - cost.moved
    assert below == 2 * 14 * (2 * decoder.hidden + 4 * keys) * ITEM
    selection = work(model, Request(8, 4, 6, BEFORE, BEHIND), layer=1)["selection"]
    assert selection == Cost(moved=8 * model.tokens * (4 + 1))
