"""Cross-modal relevance: its definition, and the queries and keys it is made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method import relevance as relevance_module
from lmms_flexselect.method.relevance import queries_and_keys, read_layers, relevance_of_sets, visual_relevance
from tests.support.oracle import grouped_query_relevance
from tests.support.random_models import DECODERS, HIDDEN, LAYERS, decoder

TOKENS, DIM = 23, 8


def random_attention(heads, kv_heads, seed=0):
    """Queries of four text tokens, keys, the queries' columns, and visual tokens with gaps, some after a query."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(heads, 4, DIM, generator=generator)
    keys = torch.randn(kv_heads, TOKENS, DIM, generator=generator)
    visual = torch.zeros(TOKENS, dtype=torch.bool)
    visual[[2, 3, 4, 7, 8, 12, 20]] = True
    return queries, keys, torch.tensor([9, 15, 21, 22]), visual


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 2), (4, 4), (7, 1)])
def test_relevance_by_its_definition(heads, kv_heads, reduction):
    queries, keys, rows, visual = random_attention(heads, kv_heads)
    actual = visual_relevance(queries, keys, rows, visual, DIM**-0.5, reduction)
    columns = visual.nonzero().flatten().tolist()
    wanted = grouped_query_relevance(queries, keys, rows.tolist(), columns, DIM**-0.5, reduction)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_half_precision_does_not_reach_the_softmax(reduction):
    """In bfloat16 the softmax would have 8 bits, and ties would be everywhere."""
    queries, keys, rows, visual = (t.bfloat16() if t.is_floating_point() else t for t in random_attention(4, 2, seed=1))
    actual = visual_relevance(queries, keys, rows, visual, DIM**-0.5, reduction)
    columns = visual.nonzero().flatten().tolist()
    wanted = grouped_query_relevance(queries, keys, rows.tolist(), columns, DIM**-0.5, reduction)
    torch.testing.assert_close(actual.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=0)


def test_text_does_not_see_what_follows_it():
    queries, keys, rows, visual = random_attention(4, 2)
    first_row_only = visual_relevance(queries[:, :1], keys, rows[:1], visual, DIM**-0.5)
    # The visual tokens at columns 12 and 20 stand behind the query at column 9.
    assert (first_row_only > 0).tolist() == [True] * 5 + [False] * 2


def test_an_unknown_reduction_is_refused():
    queries, keys, rows, visual = random_attention(4, 2)
    with pytest.raises(OptionError, match=r"^reduction='median': must be one of max, mean$"):
        visual_relevance(queries, keys, rows, visual, 1.0, "median")


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest floating-point tensor had that came out of an operation."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for each in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(each, torch.Tensor) and each.is_floating_point() and each._base is None:
                self.numbers = max(self.numbers, each.numel())
        return output


def some_sets(sets=3, heads=6, kv_heads=2, text=5):
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(sets, heads, text, DIM, generator=generator)
    keys = torch.randn(sets, kv_heads, TOKENS, DIM, generator=generator)
    visual = torch.stack([torch.randperm(TOKENS - text, generator=generator)[:9].sort().values for _ in range(sets)])
    return queries, keys, torch.arange(TOKENS - text, TOKENS), visual


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("block", [1, 2 * 3 * TOKENS, 5 * 3 * TOKENS, 4 * 5 * 3 * TOKENS, 2**24])
def test_blocks_change_nothing_but_memory(block, reduction, monkeypatch):
    queries, keys, rows, columns = some_sets()
    monkeypatch.setattr(relevance_module, "BLOCK", block)
    with Largest() as largest:
        actual = relevance_of_sets(queries, keys, rows, columns, DIM**-0.5, reduction)
    # At least one row of the heads that share a key; all else has no axis of text.
    assert largest.numbers <= max(block, 3 * TOKENS, keys.numel(), queries.numel())
    for number in range(len(queries)):
        wanted = grouped_query_relevance(
            queries[number], keys[number], rows.tolist(), columns[number].tolist(), DIM**-0.5, reduction
        )
        torch.testing.assert_close(
            actual[number].double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=0
        )


def prompt_for(kind):
    """Embeddings and positions with gaps, as a prompt has whose tokens were chosen."""
    embeds = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3))
    axes = 3 if kind == "qwen2_5_vl" else 1
    gaps = torch.randint(1, 6, (axes, TOKENS), generator=torch.Generator().manual_seed(4))
    return embeds, gaps.cumsum(1)


def forward(model, embeds, positions, **kwargs):
    return model(
        inputs_embeds=embeds[None],
        position_ids=positions[:, None] if len(positions) > 1 else positions,
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        use_cache=False,
        **kwargs,
    )


def attention_from(queries, keys, scale):
    """Causal attention of all tokens in float64: ``(heads, tokens, tokens)``."""
    keys = keys.repeat_interleave(len(queries) // len(keys), 0)
    logits = queries.double() @ keys.double().mT * scale
    ahead = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    return logits.masked_fill(ahead, -torch.inf).softmax(-1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", DECODERS)
def test_queries_and_keys_give_the_layers_own_attention(kind, layer, attention):
    embeds, positions = prompt_for(kind)
    with torch.no_grad():
        wanted = forward(decoder(kind, attention="eager"), embeds, positions, output_attentions=True).attentions[layer]
    queries, keys, scale = queries_and_keys(decoder(kind, attention=attention), layer, embeds, positions)
    actual = attention_from(queries, keys, scale)
    torch.testing.assert_close(actual, wanted[0].double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", DECODERS)
def test_several_layers_in_one_pass(kind, attention):
    """Each as the model's own whole pass has it: reading a layer changes nothing of those above."""
    embeds, positions = prompt_for(kind)
    with torch.no_grad():
        wanted = forward(decoder(kind, attention="eager"), embeds, positions, output_attentions=True).attentions
    model, found = decoder(kind, attention=attention), {}
    before = state_of(model)
    with torch.no_grad():
        read_layers(model, [0, 2, 3], embeds, positions, lambda n, q, k, s: found.update({n: attention_from(q, k, s)}))
    assert list(found) == [0, 2, 3]
    for layer, actual in found.items():
        torch.testing.assert_close(actual, wanted[layer][0].double(), rtol=0, atol=1e-5)
    assert state_of(model) == before


@pytest.fixture
def counted():
    """A decoder, and the names of its modules in the order in which their forward passes ended."""
    model = decoder("qwen2_5_vl")
    ended: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ended.append(name))
    return model, ended


@pytest.mark.parametrize("layer", range(LAYERS))
def test_nothing_above_the_layers_projections_runs(counted, layer):
    model, ended = counted
    queries_and_keys(model, layer, *prompt_for("qwen2_5_vl"))
    own = {f"layers.{layer}.{part}" for part in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj")}
    assert own <= set(ended)
    assert [f"layers.{i}" for i in range(LAYERS) if f"layers.{i}" in ended] == [f"layers.{i}" for i in range(layer)]
    ran = {name.split(".")[1] for name in ended if name.startswith("layers.")}
    assert ran == {str(i) for i in range(layer + 1)}
    assert not {f"layers.{layer}.{part}" for part in ("self_attn", "self_attn.o_proj", "mlp")} & set(ended)
    assert "norm" not in ended


def state_of(model):
    """All that reading a layer could leave behind: configs (by identity and content) and attributes."""
    return [
        (name, id(config), copy.deepcopy(config.to_dict()), config._attn_implementation, sorted(vars(module)))
        for name, module in model.named_modules()
        if (config := getattr(module, "config", None)) is not None
    ]


class Breakdown(Exception):
    pass


@pytest.mark.parametrize("broken", [None, "layers.0.mlp", "layers.2.self_attn.k_proj"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(attention, broken):
    model = decoder("qwen2_5_vl", attention=attention)
    embeds, positions = prompt_for("qwen2_5_vl")
    before = state_of(model)
    with torch.no_grad():
        output = forward(model, embeds, positions).last_hidden_state
    if broken is None:
        queries_and_keys(model, 2, embeds, positions)
    else:

        def break_down(*_):
            raise Breakdown

        hook = model.get_submodule(broken).register_forward_hook(break_down)
        with pytest.raises(Breakdown):
            queries_and_keys(model, 2, embeds, positions)
        hook.remove()
    assert state_of(model) == before
    with torch.no_grad():
        assert torch.equal(forward(model, embeds, positions).last_hidden_state, output)


@pytest.mark.parametrize("layer", [-1, LAYERS, 20])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(OptionError, match=f"^reference_layer={layer}: this model has layers 0 to {LAYERS - 1}$"):
        queries_and_keys(decoder("qwen2"), layer, *prompt_for("qwen2"))


@pytest.mark.parametrize("on", [False, True])
def test_gradients_are_recorded_where_they_are_wanted(on):
    """A selector is trained through this; evaluation turns them off."""
    with torch.set_grad_enabled(on):
        queries, keys, _ = queries_and_keys(decoder("qwen2"), 1, *prompt_for("qwen2"))
    assert queries.requires_grad is on
    assert keys.requires_grad is on


@pytest.mark.parametrize("factor", [0.3, 0.05])
def test_a_layers_own_scale_counts(factor):
    """Not every model's is one over the root of the head's size."""
    model = decoder("qwen2")
    embeds, positions = prompt_for("qwen2")
    model.layers[1].self_attn.scaling = factor
    assert queries_and_keys(model, 1, embeds, positions)[2] == factor
    assert queries_and_keys(model, 0, embeds, positions)[2] != factor
