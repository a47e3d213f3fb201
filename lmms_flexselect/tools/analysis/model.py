"""The model whose layers are measured: loaded by lmms-eval's options; its own layers, or its selector's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lmms_flexselect.families.reader import Reader
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.options import FlexSelectOptions
from lmms_flexselect.presets import OPERATIONAL
from lmms_flexselect.tools.build import build_model, parse_model_args

# Options that change no measurement: all layers are read, by both reductions, and nothing is dropped.
_NOT_MEASURED = (*OPERATIONAL, "reference_layer", "reduction", "token_budget")


@dataclass
class LoadedModel:
    """A model, and what reads frames and questions for it.

    Attributes
    ----------
    name
        As on lmms-eval's command line.
    family_name
        Upstream's name of the family.
    reader
        Reads frames and a question as the model does.
    options
        Resolved.
    resolved
        The same as plain values, with upstream's.
    """

    name: str
    family_name: str
    reader: Reader
    options: FlexSelectOptions
    resolved: Mapping[str, Any]

    @property
    def of_selector(self) -> bool:
        """Whether the layers are a FlexSelect-Lite selector's."""
        return self.options.selector == "lite"

    @property
    def decoder(self) -> nn.Module:
        """Whose layers are measured: with ``selector=lite`` the selector's, else the model's."""
        family = self.reader.family
        return family.selector.decoder if self.of_selector else family.decoder

    @property
    def num_layers(self) -> int:
        """How many there are."""
        layers: Any = self.decoder.layers
        return len(layers)

    def prompt(self, frames: Tensor, question: str) -> VideoPrompt:
        """What the decoder reads of frames ``(units * frames_per_unit, height, width, 3)`` uint8 and a question."""
        family = self.reader.family
        device = family.model.device
        inputs = self.reader.of_frames(frames, question)
        (prompt,) = family.prompts({k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})
        if not self.of_selector:
            return prompt
        assert prompt.scorer is not None
        return prompt.scorer

    def about(self) -> dict[str, Any]:
        """What its scores depend on."""
        options = {name: value for name, value in self.resolved.items() if name not in _NOT_MEASURED}
        return {"model": self.name, "scored_by": "selector" if self.of_selector else "model", "options": options}


def load(name: str, model_args: str) -> LoadedModel:
    """Load a model by lmms-eval's name for it and its ``--model_args``.

    Raises
    ------
    FlexSelectError
        If there is no such model, or an argument does not fit.
    """
    plugin = build_model(name, parse_model_args(model_args))
    return LoadedModel(name, plugin._family_name, plugin.reader(), plugin.options, plugin.resolved)
