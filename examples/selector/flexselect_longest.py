"""``selector=longest``: keeps the visual tokens with the longest embeddings, whatever the question is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selection import best_of_sets


class Longest:
    """See `lmms_flexselect.method.selectors` for what a selector is."""

    title, colour, marker = "longest", "#8c564b", "P"
    arguments = ("norm",)
    unused_options = ("reference_layer", "reduction")

    def __init__(self, norm: float = 2.0) -> None:
        self.norm = norm

    @classmethod
    def from_options(cls, options: Any, family: Any) -> "Longest":
        """``selector_args=norm:1`` measures by the sum of absolute values, for instance."""
        norm = (options.selector_args or {}).get("norm", 2.0)
        if not isinstance(norm, (int, float)) or not norm > 0:
            raise OptionError(f"selector_args=norm:{norm}: must be a number above 0")
        return cls(float(norm))

    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Of each frame set its quota of the longest."""
        embeds = prompt.inputs_embeds[columns.to(prompt.inputs_embeds.device)]
        scores = torch.linalg.vector_norm(embeds.float(), self.norm, dim=-1)
        return best_of_sets(scores, [of_set.nonzero().squeeze(-1) for of_set in sets], quotas), scores
