"""FlexSelect-Lite: rank by a small selector that was trained to reproduce the VideoLLM's own ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.lite.checkpoint import load_selector
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selectors.reference_layer import ReferenceLayer
from lmms_flexselect.runtime.store import VideoStore


@dataclass
class Lite:
    """Scores a frame set by the last layer of a selector's decoder (paper, section 3.3).

    Attributes
    ----------
    decoder
        The selector's; its layers below the last run, the last one's queries and keys give the score.
    reduction
        ``"max"`` or ``"mean"`` over heads and text tokens.
    store
        See `ReferenceLayer`.
    """

    decoder: nn.Module
    reduction: str = "max"
    store: VideoStore | None = None
    title: ClassVar[str] = "FlexSelect-Lite"
    colour: ClassVar[str] = "#2ca02c"
    marker: ClassVar[str] = "D"
    unused_options: ClassVar[tuple[str, ...]] = ("reference_layer",)

    @classmethod
    def from_options(cls, options: Any, family: Any) -> Lite:
        """Load the network at ``selector_path`` beside the model."""
        path, device = str(options.selector_path), family.model.device
        family.read_selector_files(path)
        network = load_selector(
            path,
            family.tower,
            getattr(torch, options.dtype),
            attn_implementation=family.decoder.config._attn_implementation,
            **({} if device.type == "cpu" else {"device_map": {"": str(device)}}),
        )
        return family.lite(network, options.reduction)

    def __post_init__(self) -> None:
        layers: Any = self.decoder.layers
        self._last = ReferenceLayer(self.decoder, len(layers) - 1, self.reduction, self.store)

    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Keep the `quotas[g]` tokens of every frame set that the selector finds most relevant."""
        if prompt.scorer is None:
            raise FlexSelectError("this prompt was made without a selector; load it into the family first")
        video = prompt.video[columns[0]]
        own = (prompt.scorer.video == video).nonzero().squeeze(-1)
        return self._last(prompt.scorer, own, sets, quotas)
