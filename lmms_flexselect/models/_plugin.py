"""What every ``*_flexselect`` class adds to the upstream wrapper it subclasses: how it is built of model arguments."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from loguru import logger

from lmms_flexselect.analysis.measured import measured_in, read_measured
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.flexselect import FlexSelect
from lmms_flexselect.lite.checkpoint import SelectorConfig, load_selector, read_selector_config
from lmms_flexselect.models._answering import Answering, stop
from lmms_flexselect.models._frames import Frames
from lmms_flexselect.models._loading import OneProcess
from lmms_flexselect.models._records import DocumentLog
from lmms_flexselect.models._selecting_model import SelectingModel
from lmms_flexselect.models._upstream import (
    ask_behind_cache,
    replaced,
    use_upstream_prompts,
)
from lmms_flexselect.needle import checkpoint, selector_path
from lmms_flexselect.options import FlexSelectOptions, check_choice, check_names
from lmms_flexselect.presets import preset
from lmms_flexselect.processes import Processes
from lmms_flexselect.selectors import Random, Selector, Uniform
from lmms_flexselect.store import VideoStore
from lmms_flexselect.training.readers import Reader
from lmms_flexselect.video.reading import DECODERS, Backend


class FlexSelectPlugin(Answering):
    """Mixed in before an upstream wrapper; everything family-neutral lives here once, and in `Answering`."""

    upstream_name: ClassVar[str]
    _upstream_module: ClassVar[ModuleType]
    _device_map_on_cpu: ClassVar[str] = "cpu"
    _family_name: ClassVar[str]
    """Of presets, options and needle checkpoint: upstream's name of the class that reads the family."""
    _decoders: ClassVar[tuple[str, ...]] = DECODERS

    def __init__(self, **given: Any) -> None:
        try:
            upstream_args = self._resolve(given)
            use_upstream_prompts()
            ask_behind_cache()
            self._load(upstream_args)
            family = self._family(super().model)
            if self.options.store_gpu_gib or self.options.store_cpu_gib:
                family.store = VideoStore(self.options.store_gpu_gib, self.options.store_cpu_gib)
            selector = self._selector(family)
        except FlexSelectError as error:
            stop(error)
        self.family = family
        self.task_dict = DocumentLog()
        flexselect = FlexSelect(
            selector,
            self.options.token_budget,
            self.options.max_frames_per_set,
            self.options.budget_remainder,
            family.round_budget,
        )
        self._frames: Frames[Any] = Frames(self._read_video, self.options.prefetch_videos, self._needs_frames)
        self._processes = Processes()
        self._processes.leave_at_exit()
        self._joined = False
        self._selecting: SelectingModel | None = self._selecting_model(family, flexselect, self.options, self.task_dict)
        self.resolved = {**self.options.to_dict(), "upstream": {n: str(v) for n, v in upstream_args.items()}}
        logger.info(f"FlexSelect options: {self.resolved}")

    # What a family's class says of itself -------------------------------------------------------------------------

    def _family(self, model: Any) -> Any:
        """How the loaded model is read."""
        raise NotImplementedError

    def _selecting_model(self, *arguments: Any) -> SelectingModel:
        """What upstream's loop talks to; `arguments` are `SelectingModel`'s."""
        raise NotImplementedError

    @property
    def backend(self) -> Backend:
        """What reads videos."""
        return Backend(self.options.video_decode_backend, self.options.video_timeout)

    def reader(self) -> Reader:
        """What reads frames and a question as this model does, outside of lmms-eval's loop."""
        raise NotImplementedError

    def _config(self, pretrained: str) -> Any:
        """The checkpoint's configuration, read before any weights are."""
        raise NotImplementedError

    def _loaders(self) -> dict[str, Any]:
        """What upstream's constructor loads with, by the names it looks up in its module."""
        raise NotImplementedError

    def _trained_with(self, config: Any) -> dict[str, Any]:
        """Upstream arguments that the checkpoint's configuration tells, and upstream does not read there."""
        return {}

    def _read_with(self, selector: SelectorConfig) -> dict[str, Any]:
        """Options that a FlexSelect-Lite selector was trained to be read with."""
        return {"reduction": selector.reduction}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        """Raise `OptionError` for upstream arguments that cannot work."""

    # Construction -------------------------------------------------------------------------------------------------

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Split the model arguments into ours and upstream's, and check all that can be checked without weights."""
        upstream_init = super().__init__
        signature = inspect.signature(upstream_init).parameters
        accepted = [name for name, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = {name: value for name, value in given.items() if name != "max_batch_size"}  # lmms-eval's, unused
        if (selector := selector_path(given)) is not None:
            given["selector_path"] = selector
        measured = None if (file := measured_in(given.get("reference_layer"))) is None else read_measured(file)
        if measured is not None:
            given["reference_layer"] = measured.layer(str(given.get("reduction", "max")))
        known = {*FlexSelectOptions.names_for(self._family_name), *accepted}
        check_names(given, known)
        check_choice("video_decode_backend", given.get("video_decode_backend", "pyav"), self._decoders)
        FlexSelectOptions.resolve(given, {})  # cheap complaints first: before even the configuration is read

        pretrained = checkpoint(given.get("pretrained", signature["pretrained"].default), self._family_name)
        if selector is not None:
            given["selector_path"] = checkpoint(selector, self._family_name, selector=True)
        config = self._config(str(pretrained))
        num_layers = config.get_text_config().num_hidden_layers
        if measured is not None:
            measured.check(self._family_name, num_layers)
        own = getattr(config, "flexselect", None)
        fill = self._trained_with(config) | preset(self._family_name, str(pretrained), own, num_layers)
        if given.get("selector") == "lite":
            fill |= self._read_with(read_selector_config(str(given["selector_path"])))
        check_names(fill, known)
        self.options = FlexSelectOptions.resolve(given, fill)
        self.options.check_model(num_layers)
        merged = {**fill, **given, "pretrained": pretrained}
        upstream_args = {name: value for name, value in merged.items() if name in accepted}
        if not torch.cuda.is_available():
            upstream_args["device"] = upstream_args.get("device") or "cpu"
        if _on_cpu(upstream_args):
            upstream_args["device_map"] = self._device_map_on_cpu
        self._check_upstream({**{n: signature[n].default for n in accepted}, **upstream_args})
        return upstream_args

    def _load(self, upstream_args: dict[str, Any]) -> None:
        """Let upstream load the model, with our dtype, a strict check of its weights, and CPU processes allowed."""
        replacements = self._loaders()
        accelerator = None
        if _on_cpu(upstream_args):
            # Upstream takes every process of several for a GPU's; on CPUs it is shown one, and told the truth after.
            accelerator = Accelerator()
            replacements["Accelerator"] = OneProcess
        with replaced(self._upstream_module, **replacements):
            super().__init__(**upstream_args)
        if accelerator is not None:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _selector(self, family: Any) -> Selector | None:
        options = self.options
        if options.selector == "reference":
            assert options.reference_layer is not None
            return family.reference_layer(options.reference_layer, options.reduction)
        if options.selector == "lite":
            return family.lite(self._load_selector(family), options.reduction)
        controls: dict[str, Selector | None] = {"uniform": Uniform(), "random": Random(options.seed), "none": None}
        return controls[options.selector]

    def _load_selector(self, family: Any) -> Any:
        """The FlexSelect-Lite selector's module, beside the model."""
        placed = {} if family.model.device.type == "cpu" else {"device_map": {"": str(family.model.device)}}
        kernel = family.decoder.config._attn_implementation
        dtype = getattr(torch, self.options.dtype)
        return load_selector(str(self.options.selector_path), family.tower, dtype, attn_implementation=kernel, **placed)

    @property
    def num_layers(self) -> int:
        """How many layers the decoder has."""
        return len(self.family.decoder.layers)

    def rank_at(self, layer: int) -> None:
        """Rank at another layer from now on; with ``selector=reference``.

        Raises
        ------
        OptionError
            If the model has no such layer.
        """
        assert self._selecting is not None
        self.options.reference_layer = layer
        self.options.check_model(self.num_layers)
        self._selecting._flexselect.selector = self._selector(self.family)


def _on_cpu(upstream_args: dict[str, Any]) -> bool:
    return str(upstream_args.get("device") or "").startswith("cpu")
