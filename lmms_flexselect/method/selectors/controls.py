"""Controls that do not look at the question: what any scoring has to beat at the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selection import evenly_spaced_mask, random_mask

_SCORING = ("reference_layer", "reduction")


class Everything:
    """Drops nothing: the paired baseline."""

    title = "all tokens"
    colour, marker = "#7f7f7f", "s"
    unused_options: ClassVar[tuple[str, ...]] = (*_SCORING, "token_budget", "max_frames_per_set", "budget_remainder")

    @classmethod
    def from_options(cls, options: Any, family: Any) -> None:
        """None, which is what `FlexSelect` takes for no selector."""
        return None


@dataclass
class Uniform:
    """Keeps tokens evenly spaced over the whole video, as many as the frame sets together may keep."""

    title: ClassVar[str] = "uniform"
    colour: ClassVar[str] = "#1f77b4"
    marker: ClassVar[str] = "^"
    unused_options: ClassVar[tuple[str, ...]] = _SCORING

    @classmethod
    def from_options(cls, options: Any, family: Any) -> Uniform:
        """See `lmms_flexselect.method.selectors`."""
        return cls()

    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """See `lmms_flexselect.method.selectors`."""
        return evenly_spaced_mask(len(columns), sum(quotas)).to(columns.device), None


@dataclass
class Random:
    """Keeps a random subset of the video's tokens.

    The draw depends on `seed` and the prompt's text only, so it is the same in any order of samples, batch size or
    number of processes.
    """

    seed: int = 0
    title: ClassVar[str] = "random"
    colour: ClassVar[str] = "#e377c2"
    marker: ClassVar[str] = "v"
    unused_options: ClassVar[tuple[str, ...]] = _SCORING

    @classmethod
    def from_options(cls, options: Any, family: Any) -> Random:
        """See `lmms_flexselect.method.selectors`."""
        return cls(options.seed)

    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """See `lmms_flexselect.method.selectors`."""
        ids = prompt.input_ids.cpu().to(torch.int64)
        fingerprint = int((ids * torch.arange(1, len(ids) + 1)).sum()) + int(columns[0])
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + fingerprint) % 2**63)
        return random_mask(len(columns), sum(quotas), generator).to(columns.device), None
