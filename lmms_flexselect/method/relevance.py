"""Cross-modal relevance of visual tokens at one decoder layer (paper, equations 1 and 2).

Two halves: `visual_relevance` is the maths on queries and keys; `queries_and_keys` reads those of one layer from an
ordinary transformers decoder, running only the layers below it, and `read_layers` those of several.
`lmms_flexselect.method.prefix` does the first in two steps, of which one can be shared by questions.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lmms_flexselect.errors import OptionError
from lmms_flexselect.runtime.memory import to_device

REDUCTIONS = ("max", "mean")
BLOCK = 2**24
"""Attention weights that exist at once (64 MiB of float32): softmaxes are taken and reduced block by block."""


def visual_relevance(
    queries: Tensor, keys: Tensor, query_columns: Tensor, visual: Tensor, scale: float, reduction: str = "max"
) -> Tensor:
    """How much attention each visual token gets from the text behind the video.

    The softmax is over **all** keys that a text token may see, in float32; then only the visual columns count. Heads
    and text tokens are reduced together: by their maximum (what the reference code does), or by their mean (as the
    paper's text reads).

    Parameters
    ----------
    queries
        ``(heads, text, head_dim)``, after the layer's norms and rotary embedding, any float dtype.
    keys
        ``(kv_heads, tokens, head_dim)``; `heads` is a multiple of `kv_heads` (grouped-query attention).
    query_columns
        ``(text,)`` int64: the place of each query in the sequence; it attends to the keys up to and including there.
    visual
        ``(tokens,)`` bool: which keys are visual tokens.
    scale
        Factor on the dot products, ``head_dim ** -0.5``.
    reduction
        ``"max"`` or ``"mean"``.

    Returns
    -------
    Tensor
        ``(visual tokens,)`` float32 on the device of `queries`.
    """
    return relevance_of_sets(
        queries[None], keys[None], query_columns, visual.nonzero().squeeze(-1)[None], scale, reduction
    )[0]


def relevance_of_sets(
    queries: Tensor, keys: Tensor, query_columns: Tensor, visual_columns: Tensor, scale: float, reduction: str = "max"
) -> Tensor:
    """`visual_relevance` of several frame sets whose prompts are equally long.

    Parameters
    ----------
    queries, keys, scale, reduction
        As there, with an axis of sets in front.
    query_columns
        ``(text,)`` int64, the same in every set.
    visual_columns
        ``(sets, visual)`` int64: where the visual tokens of each set are.

    Returns
    -------
    Tensor
        ``(sets, visual)`` float32 on the device of `keys`.
    """
    if reduction not in REDUCTIONS:
        raise OptionError(f"reduction={reduction!r}: must be one of {', '.join(REDUCTIONS)}")
    (sets, heads, text, dim), (kv_heads, tokens) = queries.shape, keys.shape[1:3]
    device = keys.device
    # A key/value head of a set with the query heads that share it: all are independent of each other.
    queries = queries.reshape(sets * kv_heads, heads // kv_heads, text, dim)
    keys = keys.reshape(sets * kv_heads, tokens, dim)
    unseen = torch.arange(tokens, device=device) > to_device(query_columns, device)[:, None]
    a_row = heads // kv_heads * tokens
    rows = max(1, min(text, BLOCK // a_row))
    together = max(1, BLOCK // (a_row * rows))
    reduced = []
    with torch.autocast(device.type, enabled=False):  # float32 in a training step too
        for some_queries, some_keys in zip(queries.split(together), keys.split(together), strict=True):
            some_keys = some_keys.float().mT
            found: Tensor | None = None
            for some_rows, hidden in zip(some_queries.split(rows, dim=2), unseen.split(rows), strict=True):
                logits = torch.bmm((some_rows.float() * scale).flatten(1, 2), some_keys)
                logits = logits.unflatten(1, some_rows.shape[1:3])
                attention = logits.masked_fill_(hidden, float("-inf")).softmax(-1)
                if reduction == "max":
                    highest = attention.amax((1, 2))
                    found = highest if found is None else torch.maximum(found, highest)
                else:
                    share = attention.sum((1, 2)) / (heads * text)
                    found = share if found is None else found + share
            assert found is not None
            reduced.append(found)
        by_head = torch.cat(reduced).view(sets, kv_heads, tokens)
        relevance = by_head.amax(1) if reduction == "max" else by_head.sum(1)
    return relevance.gather(1, to_device(visual_columns, device))


class _LayerReached(Exception):
    """Ends the decoder's forward pass; nothing above the reference layer is computed."""


_PROBE = "flexselect_probe"


def _probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    module._flexselect_read(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    if module._flexselect_goes_on is None:
        raise _LayerReached
    with module._flexselect_goes_on() as kernel:
        return kernel(module, query, key, value, mask, **kwargs)


# Registering a *named* function is transformers' own extension point; no model uses it until told to by name.
AttentionInterface.register(_PROBE, _probe)


@contextmanager
def capture_qk(
    attention: nn.Module, read: Callable[[Tensor, Tensor, float], None], goes_on: bool = False
) -> Iterator[None]:
    """Let this one attention module hand its queries and keys to `read`; undone on the way out.

    Then the decoder's pass ends there, or, with `goes_on`, goes on with the module's own kernel.
    """
    own_config = attention.config
    attention.config = copy.copy(own_config)
    attention.config._attn_implementation = _PROBE
    attention._flexselect_read = read
    attention._flexselect_goes_on = partial(_own_kernel, attention, own_config) if goes_on else None
    try:
        yield
    except _LayerReached:
        pass
    finally:
        attention.config = own_config
        del attention._flexselect_read, attention._flexselect_goes_on


@contextmanager
def _own_kernel(attention: nn.Module, config: Any) -> Iterator[Callable[..., Any]]:
    """What the module would have called, with its own configuration in place: flash attention reads it once more."""
    name = config._attn_implementation
    if name == "eager":  # each modeling file has its own
        kernel = vars(sys.modules[type(attention).__module__])["eager_attention_forward"]
    else:
        kernel = AttentionInterface()[name]
    probing, attention.config = attention.config, config
    try:
        yield kernel
    finally:
        attention.config = probing


def queries_and_keys(
    decoder: nn.Module,
    layer: int,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Tensor, Tensor, float]:
    """Queries and keys of one layer, after its norms and rotary embedding, for one unpadded prompt.

    Gradients flow if they are on. Runs decoder layers ``0 .. layer-1`` with whatever attention kernel the model was
    loaded with, then the input norm and projections of `layer`; its attention, MLP and everything above never run.
    Works for any transformers decoder whose attention goes through `AttentionInterface`, also when its layers lie on
    several devices.

    Parameters
    ----------
    decoder
        A text model of transformers; has ``layers[i].self_attn``.
    layer
        Reference layer, 0-based.
    inputs_embeds
        ``(tokens, hidden)``.
    position_ids
        ``(axes, tokens)`` int64; one axis for ordinary rotary embeddings, three for multimodal ones.
    arguments
        Of the decoder, besides, for a batch of one; see `VideoPrompt.decoder_inputs`.

    Returns
    -------
    queries, keys, scale
        ``(heads, tokens, head_dim)``, ``(kv_heads, tokens, head_dim)``, and the factor on their dot products.
    """
    found: list[tuple[Tensor, Tensor, float]] = []
    read_layers(decoder, [layer], inputs_embeds, position_ids, lambda _, *read: found.append(read), arguments)
    return found[0]


def read_layers(
    decoder: nn.Module,
    layers: Collection[int],
    inputs_embeds: Tensor,
    position_ids: Tensor,
    read: Callable[[int, Tensor, Tensor, float], None],
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """The same of several layers in one pass: each layer's are handed to `read` as it is reached, and not kept.

    Parameters
    ----------
    decoder, inputs_embeds, position_ids, arguments
        See `queries_and_keys`.
    layers
        Which, 0-based; nothing above the last of them runs.
    read
        ``read(layer, queries, keys, scale)``, in the order of the layers.

    Raises
    ------
    OptionError
        If there is no such layer.
    """
    own: Any = decoder.layers
    for layer in layers:
        if not 0 <= layer < len(own):
            raise OptionError(f"reference_layer={layer}: this model has layers 0 to {len(own) - 1}")
    positions = position_ids.to(inputs_embeds.device)
    positions = positions[:, None] if len(positions) > 1 else positions
    with ExitStack() as undo:
        for layer in layers:
            each = partial(_unbatched, read, layer)
            undo.enter_context(capture_qk(own[layer].self_attn, each, goes_on=layer < max(layers)))
        decoder(
            inputs_embeds=inputs_embeds[None],
            position_ids=positions,
            # Without a mask of ones, positions with gaps are taken for several packed sequences.
            attention_mask=torch.ones(1, inputs_embeds.shape[0], dtype=torch.long, device=inputs_embeds.device),
            use_cache=False,
            **arguments,
        )


def _unbatched(read: Callable[[int, Tensor, Tensor, float], None], layer: int, q: Tensor, k: Tensor, s: float) -> None:
    read(layer, q[0], k[0], s)
