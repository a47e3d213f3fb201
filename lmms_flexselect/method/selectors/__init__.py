"""Who decides which visual tokens stay: the method, and the controls it is measured against.

A selector is registered under the entry-point group ``lmms_flexselect.selectors`` (see `registry`). It is called with
one video of a prompt and says what to keep of it::

    keep, scores = selector(prompt, columns, sets, quotas)

Where nothing else is said, tensors are on the CPU: bookkeeping never waits for a GPU.

columns
    ``(visual,)`` int64: where the video's tokens stand in the prompt.
sets
    one ``(visual,)`` bool mask per frame set.
quotas
    how many tokens each set may keep.
keep
    ``(visual,)`` bool on the CPU, at most as many true entries as all quotas together.
scores
    ``(visual,)`` float32 relevance on any device, no NaN in it, or None where the selector does not score.

Its class has

from_options(options, family)
    a class method that makes one of `FlexSelectOptions` and a loaded `Family`; None keeps everything.
title, colour, marker
    how pictures show it (the latter two as matplotlib has them); all optional.
arguments
    names of what it takes as ``selector_args=name:value;name:value``, which it finds by name in
    `options.selector_args` (None where nothing was given) and checks itself; optional.
unused_options
    names of options that mean nothing to it, so that comparisons of runs leave them out; optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selectors.controls import Everything, Random, Uniform
from lmms_flexselect.method.selectors.reference_layer import ReferenceLayer

__all__ = ["Everything", "Random", "ReferenceLayer", "Selector", "Uniform"]


class Selector(Protocol):
    """What `FlexSelect` needs of a selector; see the module's docstring."""

    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]: ...
