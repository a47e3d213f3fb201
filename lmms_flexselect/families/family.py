"""What every family has in common: a text model, and the selectors that read it or what its tower saw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmms_flexselect.selectors import Lite, ReferenceLayer


@dataclass(frozen=True)
class Tower:
    """What a VideoLLM offers to a FlexSelect-Lite selector.

    Attributes
    ----------
    family
        Upstream's name of it.
    width
        Of the features that its projector reads.
    pooling
        LLaVA-Video: ``mm_spatial_pool_mode`` and ``mm_spatial_pool_stride``.
    spatial_merge_size
        Qwen2.5-VL: patches that become a token, along a side.
    """

    family: str
    width: int
    pooling: Mapping[str, Any] | None = None
    spatial_merge_size: int | None = None


class Family:
    """How one VideoLLM is read; a family adds ``prompts(inputs)``, ``generate(prompts)`` and ``tower``.

    Attributes
    ----------
    model
        The loaded model, on any device or devices.
    round_budget
        Whether the reference rounds this family's budget up to whole frames (see `FlexSelect`).
    selector
        A FlexSelect-Lite selector's module (see `lmms_flexselect.lite`): prompts then hold what it reads.
    """

    model: Any
    round_budget: ClassVar[bool] = False
    selector: Any = None

    @property
    def decoder(self) -> nn.Module:
        """The text model."""
        return self.model.model.language_model

    def reference_layer(self, layer: int, reduction: str = "max") -> ReferenceLayer:
        """The training-free selector of this model."""
        return ReferenceLayer(self.decoder, layer, reduction)

    def lite(self, selector: Any, reduction: str = "max") -> Lite:
        """FlexSelect-Lite: from now on every prompt is made for `selector` too, from one run of the tower."""
        self.selector = selector
        return Lite(selector.decoder, reduction)

    def selector_tokens(self, features: Tensor) -> Tensor:
        """Visual tokens as the selector has them, of what the model's own projector has read."""
        own = self.selector.get_input_embeddings().weight
        return self.selector.project(features.to(own.device, own.dtype))


def gradients_for_selector(prompts: Callable[..., Any]) -> Callable[..., Any]:
    """Of a family's `prompts`: no gradients, unless its selector is being trained (the model's own are frozen then)."""

    @functools.wraps(prompts)
    def wrapped(self: Family, *arguments: Any, **kwargs: Any) -> Any:
        training = self.selector is not None and self.selector.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and training):
            return prompts(self, *arguments, **kwargs)

    return wrapped


@contextmanager
def reading_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what `module` is called with, call by call; undone on the way out."""
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    try:
        yield read
    finally:
        handle.remove()
