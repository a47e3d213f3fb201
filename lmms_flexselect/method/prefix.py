"""The queries and keys of one layer in two steps, of which the first does not depend on the question.

Attention is causal and the question comes after the video. So what the layers below the reference layer make of a frame
set's prompt up to its last visual token (their keys and values, and the reference layer's keys) is the same for every
question: `read_prefix`. A question then costs its own tokens: `read_behind`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method.relevance import capture_qk
from lmms_flexselect.runtime.memory import to_device

_PART_BYTES = {"cpu": 2 * 2**20, "gpu": 256 * 2**20}


@dataclass
class Prefix:
    """What a decoder's layers hold of the prompts of some frame sets, up to their last visual tokens.

    Attributes
    ----------
    keys
        ``(sets, kv_heads, tokens, head_dim)`` of layers ``0 .. reference layer``, rotary embedding applied.
    values
        Of the same shape, of layers ``0 .. reference layer - 1``.
    """

    keys: list[Tensor]
    values: list[Tensor]


class _PrefixLayer(DynamicLayer):
    """Keys and values in front of those that come; not added to, so that the next question finds them as they were."""

    def __init__(self, keys: Tensor, values: Tensor | None) -> None:
        super().__init__()
        self.keys, self.values, self.device, self.dtype = keys, values, keys.device, keys.dtype
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix's and the new ones, where the new ones are: the prefix may have been moved to the host."""
        device = key_states.device
        keys = torch.cat([self.keys.to(device, non_blocking=True), key_states], dim=-2)
        if self.values is None:  # the reference layer's are never read
            return keys, value_states
        return keys, torch.cat([self.values.to(device, non_blocking=True), value_states], dim=-2)


def read_prefix(
    decoder: nn.Module,
    layer: int,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> Prefix:
    """Run the layers below `layer`, and its norm and key projection, over the beginnings of some prompts.

    Parameters
    ----------
    decoder
        A text model of transformers; has ``layers[i].self_attn``, with a projection each for queries, keys and
        values.
    layer
        Reference layer, 0-based.
    inputs_embeds
        ``(sets, tokens, hidden)``, unpadded.
    position_ids
        ``(axes, sets, tokens)`` int64; one axis for ordinary rotary embeddings, three for multimodal ones.
    arguments
        Of the decoder, besides; see `VideoPrompt.decoder_inputs`.
    """
    attention = attention_of(decoder, layer)
    cache = DynamicCache()
    with (
        capture_qk(attention, lambda *_: None),
        _projection_skipped(attention, "q_proj", "v_proj"),
        _chunked_mlp(decoder, layer, inputs_embeds),
    ):
        _run(decoder, inputs_embeds, position_ids, cache, arguments)
    keys, values = ([getattr(each, name) for each in cache.layers] for name in ("keys", "values"))
    return Prefix(keys, values[:layer])


def read_behind(
    decoder: nn.Module,
    layer: int,
    prefix: Prefix,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Tensor, Tensor, float]:
    """Queries and keys of one layer, for what comes after the prefix.

    Parameters
    ----------
    decoder, layer, position_ids, arguments
        See `read_prefix`.
    prefix
        Of the same decoder and layer.
    inputs_embeds
        ``(sets, text, hidden)``.

    Returns
    -------
    queries, keys, scale
        ``(sets, heads, text, head_dim)``, ``(sets, kv_heads, prefix + text, head_dim)``, and the factor on their dot
        products.
    """
    attention = attention_of(decoder, layer)
    read: list[tuple[Tensor, Tensor, float]] = []
    cache = DynamicCache()
    cache.layers = [_PrefixLayer(k, v) for k, v in zip(prefix.keys, [*prefix.values, None], strict=True)]
    with capture_qk(attention, lambda *found: read.append(found)), _projection_skipped(attention, "v_proj"):
        _run(decoder, inputs_embeds, position_ids, cache, arguments)
    return read[0]


def depends_on_length(decoder: Any, tokens: int) -> bool:
    """Whether a prompt of so many tokens has other rotary frequencies than its beginning alone.

    So it is with dynamic NTK scaling beyond the length that the model was trained with.
    """
    scaling = str(getattr(decoder.rotary_emb, "rope_type", "default"))
    if "dynamic" not in scaling and "longrope" not in scaling:
        return False
    words = getattr(decoder.config, "rope_parameters", None) or {}
    return tokens >= words.get("original_max_position_embeddings", decoder.config.max_position_embeddings)


def attention_of(decoder: Any, layer: int) -> nn.Module:
    """The attention module of one layer.

    Raises
    ------
    OptionError
        If there is no such layer.
    """
    if not 0 <= layer < len(decoder.layers):
        raise OptionError(f"reference_layer={layer}: this model has layers 0 to {len(decoder.layers) - 1}")
    return decoder.layers[layer].self_attn


def _run(
    decoder: nn.Module, inputs_embeds: Tensor, position_ids: Tensor, cache: DynamicCache, arguments: Mapping[str, Any]
) -> None:
    # transformers calls it `past_key_values` up to some release, and `cache` after.
    name = "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"
    positions = to_device(position_ids, inputs_embeds.device)
    decoder(
        inputs_embeds=inputs_embeds,
        position_ids=positions if len(positions) > 1 else positions[0],
        # With a cache there is no looking for several packed sequences. A mask would be read back from the GPU.
        attention_mask=None,
        use_cache=True,
        **{name: cache},
        **arguments,
    )


@contextmanager
def _projection_skipped(attention: Any, *names: str) -> Iterator[None]:
    """Let some projections of an attention module be zeros of one head, which nothing reads; undone on the way out."""

    def zeros(hidden: Tensor) -> Tensor:
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], attention.head_dim)

    with ExitStack() as undo:
        for name in names:
            undo.enter_context(_forward(getattr(attention, name), zeros))
        yield


@contextmanager
def _chunked_mlp(decoder: Any, layer: int, like: Tensor) -> Iterator[None]:
    """Let the perceptrons below `layer` take some tokens at a time; undone on the way out.

    They are three times as wide as anything else and see each token by itself: parts that fit a processor's cache
    save more than they cost, and a GPU has room for more frame sets.
    """
    room = _PART_BYTES["cpu" if like.device.type == "cpu" else "gpu"]
    rows = max(1, room // (decoder.config.intermediate_size * like.dtype.itemsize) // len(like))

    def split(whole: Any) -> Any:
        return lambda hidden: torch.cat([whole(part) for part in hidden.split(rows, dim=1)], dim=1)

    with ExitStack() as undo:
        for below in decoder.layers[:layer]:
            # Weights that are loaded from disk for every call are loaded once; experts want many tokens each.
            whole = hasattr(below.mlp, "experts") or any(weight.is_meta for weight in below.mlp.parameters())
            if rows < like.shape[1] and not whole:
                undo.enter_context(_forward(below.mlp, split(below.mlp.forward)))
        yield


@contextmanager
def _forward(module: nn.Module, function: Any) -> Iterator[None]:
    own = vars(module).get("forward")  # accelerate's hooks are there
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
