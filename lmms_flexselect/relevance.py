"""Cross-modal relevance of visual tokens at one decoder layer (paper, equations 1 and 2).

Two halves: `visual_relevance` is the maths on queries and keys; `queries_and_keys` reads those of one layer from an
ordinary transformers decoder, running only the layers below it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lmms_flexselect.errors import OptionError

REDUCTIONS = ("max", "mean")


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
    if reduction not in REDUCTIONS:
        raise OptionError(f"reduction={reduction!r}: must be one of {', '.join(REDUCTIONS)}")
    heads, kv_heads = queries.shape[0], keys.shape[0]
    unseen = torch.arange(keys.shape[1], device=keys.device)[None, :] > query_columns[:, None]
    visual_columns = visual.nonzero().squeeze(-1)
    relevance = torch.zeros(len(visual_columns), dtype=torch.float32, device=keys.device)
    # One group of heads at a time: the largest temporary is (heads / kv_heads, text, tokens), whatever the model.
    with torch.autocast(queries.device.type, enabled=False):  # float32 in a training step too
        for group, key in zip(queries.view(kv_heads, heads // kv_heads, *queries.shape[1:]), keys, strict=True):
            logits = torch.matmul(group.float(), key.float().T) * scale
            attention = logits.masked_fill_(unseen, float("-inf")).softmax(-1)[..., visual_columns]
            if reduction == "max":
                relevance = torch.maximum(relevance, attention.amax((0, 1)))
            else:
                relevance = relevance + attention.sum((0, 1)) / (heads * queries.shape[1])
    return relevance


class _LayerReached(Exception):
    """Ends the decoder's forward pass; nothing above the reference layer is computed."""


_PROBE = "flexselect_probe"


def _probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    module._flexselect_read(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    raise _LayerReached


# Registering a *named* function is transformers' own extension point; no model uses it until told to by name.
AttentionInterface.register(_PROBE, _probe)


@contextmanager
def _reading_layer(attention: nn.Module, read: Callable[[Tensor, Tensor, float], None]) -> Any:
    """Let this one attention module hand its queries and keys to `read` and stop; undone on the way out."""
    own_config = attention.config
    attention.config = copy.copy(own_config)
    attention.config._attn_implementation = _PROBE
    attention._flexselect_read = read
    try:
        yield
    except _LayerReached:
        pass
    finally:
        attention.config = own_config
        del attention._flexselect_read


def queries_and_keys(
    decoder: nn.Module, layer: int, inputs_embeds: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Queries and keys of one layer, after its norms and rotary embedding, for one unpadded prompt.

    Gradients flow if they are on. Runs decoder layers ``0 .. layer-1`` with whatever attention kernel the model was
    loaded with, then the input norm and projections of `layer`; its attention, MLP and everything above never run.
    Works for any transformers decoder whose attention goes through `AttentionInterface`, also when its layers lie on
    several devices.

    Parameters
    ----------
    decoder
        The text model, e.g. `Qwen2Model`; has ``layers[i].self_attn``.
    layer
        Reference layer, 0-based.
    inputs_embeds
        ``(tokens, hidden)``.
    position_ids
        ``(axes, tokens)`` int64; one axis for ordinary rotary embeddings, three for multimodal ones.

    Returns
    -------
    queries, keys, scale
        ``(heads, tokens, head_dim)``, ``(kv_heads, tokens, head_dim)``, and the factor on their dot products.
    """
    layers: Any = decoder.layers
    if not 0 <= layer < len(layers):
        raise OptionError(f"reference_layer={layer}: this model has layers 0 to {len(layers) - 1}")
    read: list[tuple[Tensor, Tensor, float]] = []
    positions = position_ids.to(inputs_embeds.device)
    positions = positions[:, None] if len(positions) > 1 else positions
    with _reading_layer(layers[layer].self_attn, lambda q, k, scale: read.append((q[0], k[0], scale))):
        decoder(
            inputs_embeds=inputs_embeds[None],
            position_ids=positions,
            # Without a mask of ones, positions with gaps are taken for several packed sequences.
            attention_mask=torch.ones(1, inputs_embeds.shape[0], dtype=torch.long, device=inputs_embeds.device),
            use_cache=False,
        )
    return read[0]
