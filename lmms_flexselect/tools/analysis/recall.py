"""Recall@K of the needle at every layer: the maths (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.relevance import REDUCTIONS, read_layers, visual_relevance
from lmms_flexselect.method.selection import top_k_mask
from lmms_flexselect.method.selectors.reference_layer import set_prompt


def recall_at_k(scores: Tensor, needle: Tensor) -> float:
    """Which share of the needle's K tokens is among the K highest scores; of equal scores the lower index wins.

    Parameters
    ----------
    scores
        ``(visual,)`` float32.
    needle
        ``(visual,)`` bool, on the CPU.
    """
    k = int(needle.sum())
    return float((top_k_mask(scores, k) & needle).sum()) / k


@torch.no_grad()
def recall_of_layers(
    decoder: nn.Module, prompt: VideoPrompt, needle: Tensor, layers: Collection[int]
) -> dict[str, list[float]]:
    """Recall@K at some layers, from one pass of the decoder over a prompt with one video, as one frame set.

    Each layer's queries and keys are scored as the layer is reached, and dropped; what exists at once is what scoring
    at one layer needs.

    Parameters
    ----------
    decoder
        The text model that reads the prompt.
    prompt
        With all of its visual tokens.
    needle
        ``(tokens,)`` bool: the visual tokens to be found.
    layers
        0-based, ascending.

    Returns
    -------
    dict
        For ``"max"`` and ``"mean"``, the recall at each layer.

    Raises
    ------
    FlexSelectError
        If the needle has no token in the prompt.
    """
    columns = prompt.visual.cpu().nonzero().squeeze(-1)
    needle = needle.cpu()[columns]
    if not bool(needle.any()):
        raise FlexSelectError("the needle has no visual token in this prompt")
    own = set_prompt(prompt, columns, prompt.query_columns)
    found: dict[str, list[float]] = {reduction: [] for reduction in REDUCTIONS}

    def score(layer: int, queries: Tensor, keys: Tensor, scale: float) -> None:
        rows = own.queries.to(queries.device)
        visual = torch.zeros(keys.shape[1], dtype=torch.bool, device=keys.device)
        visual[own.places.to(keys.device)] = True
        for reduction, values in found.items():
            values.append(recall_at_k(visual_relevance(queries[:, rows], keys, rows, visual, scale, reduction), needle))

    embeds, arguments = prompt.decoder_inputs(own.columns[None])
    read_layers(decoder, layers, embeds[0], own.positions, score, arguments)
    return found
