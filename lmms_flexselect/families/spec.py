"""`FamilySpec`: all that the rest of the package needs to know of a family, and the registry that finds them.

A family is registered under the entry-point group ``lmms_flexselect.families``; what is registered is its `FamilySpec`,
in a module that imports nothing heavy. Classes are named as ``"package.module:Name"`` and imported on first use, since
lmms-eval reads the names of models long before, and often without ever, needing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from loguru import logger

from lmms_flexselect.errors import OptionError, first_line

GROUP = "lmms_flexselect.families"


@dataclass(frozen=True)
class ModelName:
    """A name that ``lmms-eval --model`` takes.

    Attributes
    ----------
    name
        Upstream's name of its class, with ``_flexselect`` behind it.
    chat, simple
        The classes behind it, as ``"package.module:Name"``; None where upstream has none of the kind.
    upstream
        lmms-eval's name of the model whose prompts it gets; None for `name` without its end.
    """

    name: str
    chat: str | None = None
    simple: str | None = None
    upstream: str | None = None

    @property
    def upstream_name(self) -> str:
        """lmms-eval's name of the model whose prompts it gets."""
        return self.upstream or self.name.removesuffix("_flexselect")

    @property
    def class_path(self) -> str:
        """Of the class that lmms-eval takes unless it is told otherwise."""
        path = self.chat or self.simple
        assert path is not None
        return path


@dataclass(frozen=True)
class PublishedModel:
    """A model that settings were published for.

    Attributes
    ----------
    name
        As the paper's tables have it.
    checkpoint
        What its published checkpoint is called, without the organisation.
    hidden_size, num_layers
        Of its decoder.
    entries
        What its ``config.json`` says beside, which tells it from other models of this shape.
    """

    name: str
    checkpoint: str
    hidden_size: int
    num_layers: int
    entries: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FamilySpec:
    """A family of VideoLLMs.

    Attributes
    ----------
    name
        On the command line, in results files and in selectors' ``config.json``: lmms-eval's name of its class.
    title
        As people write it.
    models
        Names on lmms-eval's command line; the first is the one that tools take where none is given.
    frames_option
        Upstream's argument that bounds the frames read of a video.
    frames_per_unit
        Frames of the video that make one of the family's units (see `VideoPrompt.frame`).
    defaults
        Model arguments, ours and upstream's, that fit all checkpoints of the family.
    published, published_arguments
        Models that settings were published for, and these settings: model arguments, ours and upstream's. See
        `lmms_flexselect.presets`.
    reference_layers
        The layer that was measured (0-based), by the number of the decoder's layers.
    reference_layer_source
        Who measured it.
    relative_depth
        Share of the decoder's layers below the reference layer where nothing was measured.
    upstream_device_map
        What upstream's class does where no ``device_map`` is given: ``"auto"`` spreads the model over all GPUs.
    options
        The dataclass of options: `FlexSelectOptions`, or a subclass with options that only this family has.
    reader
        The class that reads frames and a question outside of lmms-eval; see `lmms_flexselect.families.reader.Reader`.
    selector_network
        The module class of a FlexSelect-Lite selector for this family; see `lmms_flexselect.lite`.
    shape
        ``shape(config, arguments, selector=None, grid=None)``, a function that gives a checkpoint's `ModelShape` (see
        `lmms_flexselect.cost.shape`) from its configuration and upstream's arguments; with a FlexSelect-Lite selector
        whose ``config.json`` is `selector`; of frames of ``grid = (rows, columns)`` patches where their size varies,
        else of the largest that the arguments allow. ValueError if a size is missing in `selector`.
    tokens_behind_row
        Visual tokens behind each row of a picture's tokens that stand for no place in it.
    needle
        The class that builds and trains the family's needle model (see `lmms_flexselect.needle`); None without one.
    """

    name: str
    title: str
    models: tuple[ModelName, ...]
    frames_option: str
    reader: str
    shape: str
    frames_per_unit: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[PublishedModel, ...] = ()
    published_arguments: Mapping[str, Any] = field(default_factory=dict)
    reference_layers: Mapping[int, int] = field(default_factory=dict)
    reference_layer_source: str = "the paper"
    relative_depth: float = 20 / 28
    upstream_device_map: str = "auto"
    options: str = "lmms_flexselect.options:FlexSelectOptions"
    selector_network: str | None = None
    tokens_behind_row: int = 0
    needle: str | None = None

    def reference_layer(self, num_layers: int) -> tuple[int, bool]:
        """The default reference layer of a decoder of so many layers, and whether it was measured."""
        if num_layers in self.reference_layers:
            return self.reference_layers[num_layers], True
        return min(round(num_layers * self.relative_depth), num_layers - 1), False


def load(path: str) -> Any:
    """What ``"package.module:Name"`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@cache
def families() -> dict[str, FamilySpec]:
    """All registered families by name, this package's own first.

    One that cannot be imported, is no `FamilySpec`, or has a name that is taken is left out with a warning: somebody
    else's broken package must not take all models from lmms-eval.
    """
    found: dict[str, FamilySpec] = {}
    taken: set[str] = set()
    points = sorted(entry_points(group=GROUP), key=lambda p: (not p.value.startswith("lmms_flexselect."), p.name))
    for point in points:
        try:
            spec = point.load()
            problem = None if isinstance(spec, FamilySpec) else f"is a {type(spec).__name__}, not a FamilySpec"
        except Exception as error:
            problem = f"cannot be imported ({first_line(error)})"
        if problem is None:
            names = {spec.name, *(model.name for model in spec.models)}
            problem = f"the name {min(names & taken)} is taken" if names & taken else None
        if problem is not None:
            logger.warning(f"family {point.name} ({point.value}) is left out: {problem}")
            continue
        found[spec.name] = spec
        taken |= names
    return found


def family(name: str) -> FamilySpec:
    """The family of that name.

    Raises
    ------
    OptionError
        If there is none.
    """
    if name not in (known := families()):
        raise OptionError(f"family={name}: must be one of {', '.join(known)}")
    return known[name]


def family_of_model(model: str) -> FamilySpec | None:
    """The family that a name on lmms-eval's command line belongs to; None if it is none of ours."""
    return next((spec for spec in families().values() if model in [m.name for m in spec.models]), None)


def published_models() -> dict[str, tuple[FamilySpec, PublishedModel]]:
    """Of all families, by name."""
    return {model.name: (spec, model) for spec in families().values() for model in spec.published}
