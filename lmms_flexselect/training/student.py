"""A selector before its training: the decoder of a small language model, or of part of a model, and a new projector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect import loading
from lmms_flexselect.errors import OptionError
from lmms_flexselect.lite.checkpoint import module_config, selector_weights
from lmms_flexselect.lite.networks import Tower, network_of

# How the text decoder's parameters begin, in language models and in VideoLLMs old and new.
_DECODER = re.compile(
    r"^(?:model\.|language_model\.|model\.language_model\.|language_model\.model\.)?"
    r"((?:embed_tokens|layers\.\d+|norm)\..+)$"
)
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def new_selector(
    tower: Tower,
    init: str | None,
    sizes: Mapping[str, int] | None = None,
    defaults: Mapping[str, Any] | None = None,
    teacher_projector: Mapping[str, Tensor] | None = None,
) -> Any:
    """A selector's module in float32, to be trained.

    Parameters
    ----------
    tower
        What it will read.
    init
        Folder or hub name of a small decoder, or of a VideoLLM that has one, with the weights' names that
        grouped-query attention and gated MLPs have in most models; None for random weights.
    sizes
        Of `SIZES`. With `init` only ``num_hidden_layers``, which takes its first so many layers.
    defaults
        With random weights: the rest of the decoder's configuration, by the names of ``config.json``.
    teacher_projector
        The VideoLLM's own projector, where the selector's is made of it and not trained (see `SelectorNetwork`).

    Raises
    ------
    OptionError
        If there is no decoder at `init`, its weights have other names, or the sizes do not go together.
    """
    sizes = {name: size for name, size in (sizes or {}).items() if size is not None}
    weights: dict[str, Tensor] = {}
    words = dict(defaults or {})
    if init is not None:
        words = _decoder_words(init)
        if extra := set(sizes) - {"num_hidden_layers"}:
            raise OptionError(f"{min(extra)}={sizes[min(extra)]}: goes with random weights, not with init={init}")
        if sizes.get("num_hidden_layers", 0) > words["num_hidden_layers"]:
            raise OptionError(
                f"num_hidden_layers={sizes['num_hidden_layers']}: {init} has {words['num_hidden_layers']} layers"
            )
        weights = _decoder_weights(init)
    words |= sizes
    network = network_of(tower.family)
    if network is None:
        raise OptionError(f"family={tower.family}: has no FlexSelect-Lite selector")
    try:
        network.complete(words)
        model = network(module_config(words, tower))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise OptionError(f"init={init}: no selector can be made of these sizes ({error})") from None
    if weights:
        _fill(model.decoder, weights, init)
    if teacher_projector is not None:
        model.take_projector(teacher_projector)
    for parameter in unused(model):
        parameter.requires_grad_(False)
    return model


def unused(model: Any) -> list[torch.nn.Parameter]:
    """Parameters that scoring never reads: of the last layer all behind queries and keys, and the final norm."""
    last = model.decoder.layers[-1]
    behind = (last.self_attn.v_proj, last.self_attn.o_proj, last.mlp, last.post_attention_layernorm)
    return [p for module in (*behind, model.decoder.norm) for p in module.parameters()]


def _decoder_words(init: str) -> dict[str, Any]:
    try:
        raw = loading.raw_config(init)
    except OptionError as error:
        raise OptionError(str(error).replace("pretrained=", "init=", 1)) from None
    words = {**raw, **raw.get("llm_config", {}), **raw.get("text_config", {})}
    if "num_hidden_layers" not in words or "num_key_value_heads" not in words:
        raise OptionError(f"init={init}: its config.json describes no decoder with grouped-query attention")
    return words


def _decoder_weights(init: str) -> dict[str, Tensor]:
    try:
        weights = selector_weights(init)
    except OptionError as error:
        raise OptionError(str(error).replace("selector_path=", "init=", 1)) from None
    return {match[1]: weight for name, weight in weights.items() if (match := _DECODER.match(name))}


def _fill(decoder: Any, weights: Mapping[str, Tensor], init: str | None) -> None:
    own = {name: value for name, value in decoder.state_dict().items() if _DECODER.match(name)}
    for name, value in own.items():
        if name not in weights:
            raise OptionError(f"init={init}: has no weight {name}, which a selector's decoder needs")
        if weights[name].shape != value.shape:
            raise OptionError(
                f"init={init}: {name} is {tuple(weights[name].shape)}, where its config.json says {tuple(value.shape)}"
            )
    decoder.load_state_dict({name: weights[name] for name in own}, strict=False)
