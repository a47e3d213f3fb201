"""The model that is looked at: loaded as lmms-eval would, by the same options, and its layers or its selector's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.reader import Reader
from lmms_flexselect.manifests import manifests
from lmms_flexselect.options import FlexSelectOptions, check_choice
from lmms_flexselect.presets import OPERATIONAL
from lmms_flexselect.prompt import VideoPrompt

# What a run is not told apart by: here all layers are read, by both reductions, and nothing is dropped.
_BESIDE = (*OPERATIONAL, "reference_layer", "reduction", "token_budget")


@dataclass
class LookedAt:
    """A loaded model.

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
        """Whose layers are looked at: with ``selector=lite`` the selector's, else the model's."""
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
        options = {name: value for name, value in self.resolved.items() if name not in _BESIDE}
        return {"model": self.name, "scored_by": "selector" if self.of_selector else "model", "options": options}


def load(name: str, model_args: str) -> LookedAt:
    """Load a model by lmms-eval's name for it and its ``--model_args``.

    Raises
    ------
    FlexSelectError
        If there is no such model, or an argument does not fit.
    """
    from lmms_eval.utils import simple_parse_args_string

    known = {manifest.model_id: manifest for manifest in manifests()}
    check_choice("model", name, known)
    path = known[name].chat_class_path or known[name].simple_class_path
    assert path is not None
    module, _, of_class = path.rpartition(".")
    try:
        given = simple_parse_args_string(model_args)
    except ValueError:
        raise OptionError(f"model_args={model_args}: must be name=value,name=value") from None
    plugin = getattr(import_module(module), of_class)(**given)
    return LookedAt(name, plugin._family_name, plugin.reader(), plugin.options, plugin.resolved)
