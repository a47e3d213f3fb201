"""FlexSelect, training-free: rank by cross-modal attention at the VideoLLM's own reference layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.prompt import VideoPrompt
from lmms_flexselect.relevance import queries_and_keys, visual_relevance
from lmms_flexselect.selection import top_k_mask


@dataclass
class ReferenceLayer:
    """Scores a frame set by reading the set's prompt up to layer `layer` (paper, section 3.2).

    Attributes
    ----------
    decoder
        The VideoLLM's text model.
    layer
        Reference layer, 0-based.
    reduction
        ``"max"`` or ``"mean"`` over heads and text tokens.
    """

    decoder: nn.Module
    layer: int
    reduction: str = "max"

    @torch.no_grad()
    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Keep the `quotas[g]` most relevant tokens of every frame set."""
        scores = torch.empty(len(columns), dtype=torch.float32, device=columns.device)
        keep = torch.zeros(len(columns), dtype=torch.bool, device=columns.device)
        for members, quota in zip(sets, quotas, strict=True):
            scores[members] = self.relevance(prompt, columns[members]).to(columns.device)
            keep[members] = top_k_mask(scores[members], quota)
        return keep, scores

    def relevance(self, prompt: VideoPrompt, columns: Tensor) -> Tensor:
        """Relevance of the visual tokens at `columns`, read without any other visual token: ``(columns,)`` float32.

        Gradients flow if they are on: this is how a FlexSelect-Lite selector is trained.
        """
        if not len(queries := prompt.query_columns):
            raise FlexSelectError("the prompt has no text after the video, so there is nothing to rank its tokens by")
        if prompt.compact_positions is None:
            raise FlexSelectError("this prompt has been shortened already; score the full one")
        present = ~prompt.visual
        if prompt.label is not None:
            present &= self._tells_of(prompt, columns)
        present[columns] = True
        embeds = prompt.inputs_embeds[present.to(prompt.inputs_embeds.device)]
        q, k, scale = queries_and_keys(self.decoder, self.layer, embeds, prompt.compact_positions(present))
        # Where the prompt's columns went once the other sets' tokens were left out.
        place = present.cumsum(0) - 1
        visual = torch.zeros(q.shape[1], dtype=torch.bool, device=q.device)
        visual[place[columns].to(q.device)] = True
        rows = place[queries].to(q.device)  # the layer may lie on another device than the prompt
        return visual_relevance(q[:, rows], k, rows, visual, scale, self.reduction)

    @staticmethod
    def _tells_of(prompt: VideoPrompt, columns: Tensor) -> Tensor:
        """``(tokens,)`` bool: all but the labels of frames that are not at `columns`."""
        assert prompt.label is not None
        of_video = prompt.label == prompt.video[columns[0]]
        return (prompt.label < 0) | (of_video & torch.isin(prompt.frame, prompt.frame[columns]))
