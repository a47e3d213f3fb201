"""The estimate's coefficients against what transformers' modules hold, at published shapes, on the meta device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AttentionInterface, DynamicCache, InternVLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel

from lmms_flexselect.cost.memory import (
    CONTEXT,
    FRAGMENTED,
    GIB,
    TEXT_TOKENS,
    RunSettings,
    decoder_elements,
    estimate,
    gib,
)
from lmms_flexselect.cost.shape import DecoderShape, ModelShape, SelectorShape, TowerShape
from lmms_flexselect.families.internvl.config import read_config
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.families.spec import family, load
from lmms_flexselect.loading import checkpoint_config
from tests.support.live_memory import peak_bytes

LLAVA, QWEN, INTERN = "lmms-lab/LLaVA-Video-7B-Qwen2", "Qwen/Qwen2.5-VL-7B-Instruct", "OpenGVLab/InternVL2_5-8B"
ITEM = 2  # bytes of bfloat16
DECODER = DecoderShape(
    layers=28, hidden=3584, intermediate=18944, heads=28, key_heads=4, head_size=128, vocabulary=152064
)
TOWER = TowerShape(
    layers=26,
    width=1152,
    matrix_values=0,
    patches=729,
    patch_values=588,
    tokens=729,
    attention_pairs=0,
    elements_held=2 * 4304 + 4 * 1152,
)
MODEL = ModelShape(
    8_000_000_000,
    DECODER,
    TOWER,
    projector=(),
    tokens=210,
    pixels=442_368,
    units_at_once=32,
    embedding_copies=1,
    pixels_on_device=False,
)
RUN = RunSettings(units=512, selector="flexselect", token_budget=6720, units_per_set=64, item=ITEM)


def tower_of(name: str, config: Any, **arguments: Any) -> TowerShape:
    """As the family counts it."""
    return load(family(name).shape)(config, arguments).tower


def _fused(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of a kernel that holds nothing but its result; the meta device has none of those."""
    return torch.empty_like(query).transpose(1, 2).contiguous(), None


@pytest.fixture(autouse=True)
def _inference_in_bfloat16():
    AttentionInterface.register("fused_stand_in", _fused)
    torch.set_default_dtype(torch.bfloat16)
    with torch.no_grad():
        yield
    torch.set_default_dtype(torch.float32)


def built(model_class: Any, config: Any, device: str = "meta") -> Any:
    with torch.device(device):
        model = model_class(config)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "fused_stand_in"
    return model.eval()


def held_by_decoder(decoder: Any, tokens: int, hidden: int) -> float:
    """Elements per token."""
    embeds = torch.empty(1, tokens, hidden, device="meta")
    positions = torch.empty(3, 1, tokens, dtype=torch.long, device="meta")
    masks = {"full_attention": None, "sliding_attention": None}

    def run() -> Any:
        return decoder(inputs_embeds=embeds, position_ids=positions, attention_mask=masks, use_cache=False)

    return peak_bytes(run) / tokens / ITEM


NEW_ENOUGH = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.10"), reason="older transformers cannot run it on the meta device"
)


@NEW_ENOUGH
def test_a_decoder_layer(places):
    """3 layers stand for all: they are as large one by one."""
    config = checkpoint_config(places[QWEN], "qwen2_5_vl").get_text_config()
    config.num_hidden_layers, config.layer_types = 3, config.layer_types[:3]
    held = held_by_decoder(built(Qwen2_5_VLTextModel, config), 13_440, config.hidden_size)
    assert decoder_elements(DecoderShape.of(config)) == pytest.approx(held, rel=0.01)


@NEW_ENOUGH
@pytest.mark.parametrize(
    ("hidden", "intermediate", "of_expert", "per_token", "sparse_step"),
    [
        (2048, 6144, 768, 8, 1),  # Qwen3-VL-30B-A3B's
        (512, 64, 2048, 2, 1),  # wide experts
        (512, 64, 2048, 2, 2),  # every other layer
        (512, 8192, 32, 1, 2),  # whose other layers hold more
    ],
)
def test_a_layer_with_experts(hidden, intermediate, of_expert, per_token, sparse_step):
    """As they are run on a GPU."""
    config = Qwen3VLMoeTextConfig(
        vocab_size=8,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=of_expert,
        num_experts=16,
        num_experts_per_tok=per_token,
        decoder_sparse_step=sparse_step,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    )
    decoder = built(Qwen3VLMoeTextModel, config)
    decoder.set_experts_implementation("grouped_mm")
    held = held_by_decoder(decoder, 2000, hidden)
    assert decoder_elements(DecoderShape.of(config)) == pytest.approx(held, rel=0.06)


def test_the_towers_that_read_frames_in_chunks(places):
    llava = LlavaVideoConfig.from_checkpoint(places[LLAVA])
    internvl = read_config(places[INTERN])
    for config in (llava, internvl.get_text_config()):
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
    tower = built(LlavaVideoForCausalLM, llava).model
    held = peak_bytes(lambda: tower.encode_frames(torch.empty(32, 3, 384, 384, device="meta")))
    pixels = 32 * 3 * 384**2 * ITEM
    expected = 32 * 729 * tower_of("llava_vid", llava).elements_held * ITEM
    assert expected == pytest.approx(held - pixels, rel=0.03)

    model = built(InternVLForConditionalGeneration, internvl)
    held = peak_bytes(lambda: model.get_image_features(pixel_values=torch.empty(32, 3, 448, 448, device="meta")))
    pixels = 32 * 3 * 448**2 * ITEM
    expected = 32 * 1025 * tower_of("internvl_hf", internvl).elements_held * ITEM
    assert expected == pytest.approx(held - pixels, rel=0.05)


def test_qwens_tower_reads_all_frames_at_once(places):
    """On the CPU: it looks at the sizes of its frames while it runs. Two of its layers, a pair of frames."""
    whole = checkpoint_config(places[QWEN], "qwen2_5_vl")
    config, expected = whole.vision_config, tower_of("qwen2_5_vl", whole, max_pixels=308 * 560).elements_held
    config.depth, config.fullatt_block_indexes = 2, [1]
    tower, units = built(Qwen2_5_VisionTransformerPretrainedModel, config, "cpu"), 1
    pixels = torch.zeros(units * 22 * 38, 1176)
    held = peak_bytes(lambda: tower(pixels, torch.tensor([[units, 22, 38]]))) / len(pixels) / ITEM
    assert expected == pytest.approx(held, rel=0.05)


def test_the_cache_is_transformers():
    cache, tokens = DynamicCache(), 6720 + TEXT_TOKENS
    for layer in range(DECODER.layers):
        one = torch.empty(1, DECODER.key_heads, tokens, DECODER.head_size, device="meta")
        cache.update(one, one, layer)
    stored = sum(t.numel() * ITEM for layer in cache.layers for t in (layer.keys, layer.values))
    assert estimate(MODEL, RUN).cache == stored


def test_weights_and_embeddings():
    memory = estimate(MODEL, RUN)
    assert memory.weights == 16_000_000_000
    assert memory.embeddings == 512 * 210 * 3584 * ITEM
    half = estimate(MODEL, dataclasses.replace(RUN, item=4))
    assert (half.weights, half.embeddings, half.cache) == tuple(
        2 * n for n in (memory.weights, memory.embeddings, memory.cache)
    )


def test_a_selector_lies_beside_the_model_and_scores_in_its_place():
    small = DecoderShape(
        layers=24, hidden=896, intermediate=4864, heads=14, key_heads=2, head_size=64, vocabulary=151936
    )
    run = dataclasses.replace(RUN, selector="lite")
    model = dataclasses.replace(MODEL, selector=SelectorShape(500_000_000, small))
    memory, without = estimate(model, run), estimate(MODEL, RUN)
    assert memory.selector == 1_000_000_000
    assert memory.embeddings == without.embeddings + 512 * 210 * 896 * ITEM
    assert 0 < memory.scoring < without.scoring


def test_all_tokens_need_more_than_the_kept_ones():
    everything = estimate(MODEL, dataclasses.replace(RUN, selector="none"))
    selected = estimate(MODEL, RUN)
    assert everything.scoring == 0
    assert everything.cache == 2 * 28 * 4 * 128 * (107_520 + TEXT_TOKENS) * ITEM
    assert everything.total > selected.total + 10 * GIB


def test_nothing_is_scored_where_the_budget_holds_the_video():
    short = estimate(MODEL, dataclasses.replace(RUN, units=32))
    assert short.scoring == 0
    assert short == dataclasses.replace(estimate(MODEL, dataclasses.replace(RUN, units=32, selector="none")))


def test_the_phases_follow_each_other():
    memory = estimate(MODEL, RUN)
    most = max(memory.reading, memory.scoring, memory.answering + memory.cache)
    assert memory.total == memory.weights + int((memory.embeddings + most) * (1 + FRAGMENTED)) + CONTEXT
    assert f"weights {gib(memory.weights)}" in memory.words()


def test_eager_attention_writes_its_matrices_out():
    eager = estimate(MODEL, dataclasses.replace(RUN, eager=True))
    extra = eager.scoring - estimate(MODEL, RUN).scoring
    assert extra == 28 * (64 * 210 + TEXT_TOKENS) ** 2 * 8


def test_a_copy_over_several_gpus_shares_its_weights_alone():
    memory = estimate(dataclasses.replace(MODEL, parameters=73_000_000_000), RUN)
    each = memory.on_each(4)
    assert memory.weights // 4 < each < memory.weights // 4 + 8 * GIB
    assert memory.on_each(1) == memory.total
