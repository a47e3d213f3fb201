"""Queries and keys in two steps: as in one, for any number of questions, with nothing run that is not needed."""

from __future__ import annotations

import pytest
import torch

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method import prefix as prefix_module
from lmms_flexselect.method.prefix import depends_on_length, read_behind, read_prefix
from lmms_flexselect.method.relevance import queries_and_keys
from tests.method.test_relevance import TOKENS, Breakdown, prompt_for, state_of
from tests.support.random_models import DECODERS, HIDDEN, LAYERS, decoder


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def two_prompts(kind):
    """Equally long, with embeddings and positions of their own."""
    embeds, positions = prompt_for(kind)
    return torch.stack([embeds, embeds.flip(0)]), torch.stack([positions, positions + positions[:, :1]], dim=1)


@pytest.mark.parametrize("split", [1, 15, TOKENS - 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", DECODERS)
def test_two_steps_find_what_one_does(kind, layer, attention, split):
    model = decoder(kind, attention=attention)
    embeds, positions = two_prompts(kind)
    prefix = read_prefix(model, layer, embeds[:, :split], positions[..., :split])
    queries, keys, scale = read_behind(model, layer, prefix, embeds[:, split:], positions[..., split:])
    for number in range(2):
        all_queries, all_keys, wanted_scale = queries_and_keys(model, layer, embeds[number], positions[:, number])
        torch.testing.assert_close(queries[number], all_queries[:, split:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(keys[number], all_keys, rtol=1e-4, atol=1e-5)
        assert scale == wanted_scale


@pytest.mark.parametrize("rows", [1, 4, 15])
@pytest.mark.parametrize("kind", DECODERS)
def test_perceptrons_take_some_tokens_at_a_time(kind, rows, monkeypatch):
    model = decoder(kind)
    embeds, positions = two_prompts(kind)
    whole = read_prefix(model, 3, embeds, positions)
    monkeypatch.setitem(prefix_module._PART_BYTES, "cpu", rows * len(embeds) * model.config.intermediate_size * 4)
    seen: list[int] = []
    model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    parts = read_prefix(model, 3, embeds, positions)
    assert seen == [min(rows, TOKENS - start) for start in range(0, TOKENS, rows)]
    for got, want in zip((*parts.keys, *parts.values), (*whole.keys, *whole.values), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_question_leaves_the_prefix_as_it_was(kind):
    model = decoder(kind)
    embeds, positions = two_prompts(kind)
    prefix = read_prefix(model, 2, embeds[:, :15], positions[..., :15])
    before = [t.clone() for t in (*prefix.keys, *prefix.values)]
    first = read_behind(model, 2, prefix, embeds[:, 15:], positions[..., 15:])
    read_behind(model, 2, prefix, embeds[:, 15:18].flip(1), positions[..., 15:18])
    again = read_behind(model, 2, prefix, embeds[:, 15:], positions[..., 15:])
    assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("layer", range(LAYERS))
def test_of_the_reference_layer_only_what_is_needed_runs(layer):
    model = decoder("qwen2_5_vl")
    ended: list[str] = []

    def counting(name, product):
        def run(x):
            ended.append(f"{name} ran")
            return product(x)

        return run

    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ended.append(name))
        # Hooks run on what stands in for a projection, too: the products themselves are counted.
        if name in (f"layers.{layer}.self_attn.q_proj", f"layers.{layer}.self_attn.v_proj"):
            module.forward = counting(name, module.forward)
    embeds, positions = two_prompts("qwen2_5_vl")
    prefix = read_prefix(model, layer, embeds[:, :15], positions[..., :15])
    of_layer = {name for name in ended if name.startswith(f"layers.{layer}.")}
    own = f"layers.{layer}.self_attn"
    assert {f"{own}.q_proj ran", f"{own}.v_proj ran"} & of_layer == set()
    assert {f"layers.{layer}.input_layernorm", f"{own}.k_proj"} <= of_layer
    assert not {f"{own}.o_proj", f"layers.{layer}.mlp", own, f"layers.{layer + 1}.input_layernorm"} & set(ended)
    ended.clear()
    read_behind(model, layer, prefix, embeds[:, 15:], positions[..., 15:])
    assert f"{own}.q_proj ran" in ended
    assert f"{own}.v_proj ran" not in ended
    assert (len(prefix.keys), len(prefix.values)) == (layer + 1, layer)


@pytest.mark.parametrize("broken", [None, "layers.0.mlp", "layers.2.self_attn.k_proj"])
def test_the_model_is_left_as_it_was(broken):
    model = decoder("qwen3")
    embeds, positions = two_prompts("qwen3")
    before = state_of(model)
    attributes = [sorted(vars(module)) for module in model.modules()]

    def break_down(*_):
        raise Breakdown

    hook = model.get_submodule(broken).register_forward_hook(break_down) if broken else None
    if hook:
        with pytest.raises(Breakdown):
            read_prefix(model, 2, embeds, positions)
        hook.remove()
    else:
        read_prefix(model, 2, embeds, positions)
    assert state_of(model) == before
    assert [sorted(vars(module)) for module in model.modules()] == attributes


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(OptionError, match=f"^reference_layer={layer}: this model has layers 0 to {LAYERS - 1}$"):
        read_prefix(decoder("qwen2"), layer, torch.zeros(1, 3, HIDDEN), torch.arange(3)[None, None])


@pytest.mark.parametrize(("kind", "tokens", "depends"), [("dynamic", 4095, False), ("dynamic", 4096, True)])
def test_dynamic_scaling_depends_on_the_length_from_some_on(kind, tokens, depends):
    model = decoder("qwen2")
    assert not depends_on_length(model, tokens)
    model.rotary_emb.rope_type = kind
    assert depends_on_length(model, tokens) is depends
