"""What every family has in common: a text model, and the training-free selector that reads it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from lmms_flexselect.selectors import ReferenceLayer


class Family:
    """How one VideoLLM is read; a family adds ``prompts(inputs)`` and ``generate(prompts)``.

    Attributes
    ----------
    model
        The loaded model, on any device or devices.
    round_budget
        Whether the reference rounds this family's budget up to whole frames (see `FlexSelect`).
    """

    model: Any
    round_budget: ClassVar[bool] = False

    @property
    def decoder(self) -> nn.Module:
        """The text model."""
        return self.model.model.language_model

    def reference_layer(self, layer: int, reduction: str = "max") -> ReferenceLayer:
        """The training-free selector of this model."""
        return ReferenceLayer(self.decoder, layer, reduction)
