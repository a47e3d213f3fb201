"""Loading a FlexSelect-Lite selector, published or trained here, so that a wrong one is noticed.

A selector of another family, tower or layout ranks like chance and nobody notices: everything is compared here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file

from lmms_flexselect import loading
from lmms_flexselect.errors import OptionError, first_line
from lmms_flexselect.lite.networks import Tower, network_of, networks
from lmms_flexselect.method.relevance import REDUCTIONS

# What a published config.json calls the decoder's sizes and kind, beside its rotary parameters.
PLAIN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)
_DECODER = (*PLAIN, "rope_theta", "rope_scaling", "rope_parameters", "initializer_range")
_PUBLISHED_REDUCTIONS = {"token_selection": "max"}  # the name of the authors' function
OWN = "flexselect"
"""The entry of ``config.json`` that a selector trained here has, and a published one has not."""


@dataclass(frozen=True)
class SelectorConfig:
    """What a selector's ``config.json`` says.

    Attributes
    ----------
    raw
        All of it.
    trained_here
        Whether it was trained by this package; published selectors were not.
    reduction
        Over heads and text tokens: what it was trained to be read with.
    """

    raw: Mapping[str, Any]
    trained_here: bool
    reduction: str


def read_selector_config(path: str) -> SelectorConfig:
    """Of a folder or hub name; read before any weights are.

    Raises
    ------
    OptionError
        If there is none, or it names a reduction that is not known.
    """
    try:
        raw = loading.raw_config(path)
    except OptionError as error:
        raise OptionError(str(error).replace("pretrained=", "selector_path=", 1)) from None
    own = raw.get(OWN)
    named = (own or {}).get("reduction") or raw.get("drop_func_name") or "token_selection"
    reduction = _PUBLISHED_REDUCTIONS.get(named, named)
    if reduction not in REDUCTIONS:
        raise OptionError(f"selector_path={path}: its reduction {named!r} is not known; known are max and mean")
    return SelectorConfig(raw, own is not None, reduction)


def load_selector(path: str, tower: Tower, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A selector for a VideoLLM's tower, in evaluation mode.

    Parameters
    ----------
    path
        Folder or hub name: safetensors, or a PyTorch file that holds weights alone.
    tower
        What the VideoLLM offers.
    dtype
        Of the weights; rotary frequencies stay float32.
    kwargs
        For ``from_pretrained``: ``attn_implementation``, ``device_map``.

    Raises
    ------
    OptionError
        If it was made for another family, tower or pooling, or a tensor is missing, misshapen or unknown.
    """
    config = read_selector_config(path)
    weights = selector_weights(path)
    families = [family for family, network in networks().items() if network.mark in weights]
    if families != [tower.family]:
        kind = f"is a selector for {families[0]}" if len(families) == 1 else "is not a FlexSelect-Lite selector"
        raise OptionError(f"selector_path={path}: {kind}; this model needs one for {tower.family}")
    network = network_of(tower.family)
    if network.reading_defaults:
        own = {name: config.raw.get(name, default) for name, default in network.reading_defaults.items()}
        if own != dict(tower.reading):
            raise OptionError(f"selector_path={path}: was made for {_words(own)}; this run has {_words(tower.reading)}")
    try:
        model = loading.load_whole(
            network,
            path,
            dtype,
            all_known=True,
            source={"pretrained_model_name_or_path": None, "state_dict": weights},
            config=module_config(config.raw, tower),
            **kwargs,
        )
    except OptionError as error:
        text = str(error).replace("pretrained=", "selector_path=", 1)
        raise OptionError(f"{text}; the selector does not fit this model") from None
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(f"selector_path={path}: its config.json cannot be read ({first_line(error)})") from None
    return model.eval().requires_grad_(False)


def module_config(raw: Mapping[str, Any], tower: Tower) -> Any:
    """The configuration of a selector's module, from its own ``config.json`` and the tower it is for."""
    decoder = {**raw, **raw.get("llm_config", {})}  # some published ones nest it
    words = {name: decoder[name] for name in _DECODER if name in decoder}
    if missing := [name for name in PLAIN[:6] if name not in words]:  # or transformers would build a 7B decoder
        raise ValueError(f"no {missing[0]} in it")
    config = network_of(tower.family).config_class(**words)
    config.tower_width = tower.width
    for name, value in tower.reading.items():
        setattr(config, name, value)
    return config


def selector_weights(path: str) -> dict[str, Tensor]:
    """All tensors by their names, without the leading ``model.`` that some published files have."""
    problem = "has no weights: neither " + ", ".join((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME))
    try:
        for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
            if found := _file(path, single):
                files = [found]
            elif found := _file(path, index):
                shards = sorted(set(json.loads(Path(found).read_text())["weight_map"].values()))
                files = [str(_file(path, shard) or Path(found).with_name(shard)) for shard in shards]
            else:
                continue
            weights: dict[str, Tensor] = {}
            for file in files:
                # Never an arbitrary pickle: those can run code.
                weights |= (
                    load_file(file)
                    if single == SAFE_WEIGHTS_NAME
                    else torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                )
            return {name.removeprefix("model."): weight for name, weight in weights.items()}
    except Exception as error:
        reason = first_line(error) if isinstance(error, (OSError, SafetensorError)) else type(error).__name__
        problem = f"its weights cannot be read ({reason})"
    raise OptionError(f"selector_path={path}: {problem}")


def _file(path: str, name: str) -> str | None:
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False)


def _words(pooling: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(pooling.items()))
