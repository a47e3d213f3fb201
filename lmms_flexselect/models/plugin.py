"""What every ``*_flexselect`` class adds to the upstream wrapper it subclasses: how it is built of model arguments."""

from __future__ import annotations

import inspect
import json
import os
import uuid
from types import ModuleType
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from loguru import logger

from lmms_flexselect import __version__
from lmms_flexselect.checkpoints import content_id, identify
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.reader import Reader
from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.families.spec import load
from lmms_flexselect.lite.checkpoint import SelectorConfig, read_selector_config
from lmms_flexselect.lite.networks import network_of
from lmms_flexselect.loading import raw_config
from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.method.registry import selector_class
from lmms_flexselect.method.selectors import Selector
from lmms_flexselect.models.arguments import check_common, check_defaults, check_machine, typed
from lmms_flexselect.models.contract import check_class, check_lmms_eval
from lmms_flexselect.models.reading import Frames
from lmms_flexselect.models.running import RequestRunner, abort_run
from lmms_flexselect.models.selecting_model import SelectingModel
from lmms_flexselect.models.upstream import (
    OneProcess,
    mend_response_cache,
    replaced,
    use_upstream_prompts,
)
from lmms_flexselect.needle import checkpoint, selector_path
from lmms_flexselect.options import check_choice, check_names
from lmms_flexselect.presets import OPERATIONAL, PLACEMENT, preset, preset_message
from lmms_flexselect.recall_file import read_recommendation, recall_file_of
from lmms_flexselect.runtime.processes import Processes
from lmms_flexselect.runtime.store import VideoStore
from lmms_flexselect.video.reading import DECODERS, Backend


class FlexSelectPlugin(RequestRunner):
    """Mixed in before an upstream wrapper; everything family-neutral lives here once, and in `RequestRunner`."""

    _upstream_module: ClassVar[ModuleType]
    _device_map_on_cpu: ClassVar[str] = "cpu"
    _revision: str | None = None
    _overrides = frozenset({"accelerator", "_rank", "_world_size"})
    _family_name: ClassVar[str]
    """Of presets, options and needle checkpoint: upstream's name of the class that reads the family."""
    _without_effect: ClassVar[tuple[str, ...]] = ()
    """Upstream's arguments that change nothing, there or here: refused but for upstream's own values."""
    _decoders: ClassVar[tuple[str, ...]] = DECODERS

    def __init__(self, **given: Any) -> None:
        try:
            upstream_args = self._resolve(given)
            use_upstream_prompts()
            mend_response_cache()
            self._load(upstream_args)
            family = self._family(super().model)
            if self.options.store_gpu_gib or self.options.store_cpu_gib:
                family.store = VideoStore(self.options.store_gpu_gib, self.options.store_cpu_gib)
            selector = self._selector(family)
        except FlexSelectError as error:
            abort_run(error)
        self.family = family
        flexselect = FlexSelect(
            selector,
            self.options.token_budget,
            self.options.max_frames_per_set,
            self.options.budget_remainder,
            family.round_budget,
        )
        self._frames: Frames[Any] = Frames(self._read_video, self.options.prefetch_videos, self._needs_frames)
        self._processes = Processes(self.options.process_timeout)
        self._processes.leave_group_at_exit()
        self._joined = False
        self._selecting: SelectingModel | None = self._selecting_model(family, flexselect, self.options)
        self.resolved = {**self.options.to_dict(), "upstream": {n: str(v) for n, v in upstream_args.items()}}
        logger.info(f"FlexSelect options: {self.resolved}")
        self.resolved["checkpoint"] = self._checkpoint(upstream_args)
        self.cache_identity = self._cache_identity()

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

    def _checkpoint_config(self, pretrained: str) -> Any:
        """The checkpoint's configuration, read before any weights are."""
        raise NotImplementedError

    def _loaders(self) -> dict[str, Any]:
        """What upstream's constructor loads with, by the names it looks up in its module."""
        raise NotImplementedError

    def _checkpoint_arguments(self, config: Any) -> dict[str, Any]:
        """Upstream arguments that the checkpoint's configuration tells, and upstream does not read there."""
        return {}

    def _selector_options(self, selector: SelectorConfig) -> dict[str, Any]:
        """Options that a FlexSelect-Lite selector was trained to be read with."""
        return {"reduction": selector.reduction}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        """Raise `OptionError` for upstream arguments that cannot work."""

    # Construction -------------------------------------------------------------------------------------------------

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Split the model arguments into ours and upstream's, and check all that can be checked without weights."""
        check_lmms_eval()
        check_class(type(self))
        upstream_init = super().__init__
        signature = inspect.signature(upstream_init).parameters
        accepted = [name for name, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = {name: value for name, value in given.items() if name != "max_batch_size"}  # lmms-eval's, unused
        if given.get("selector") == "lite":
            network_of(self._family_name)
        if (selector := selector_path(given)) is not None:
            given["selector_path"] = selector
        measured = None if (file := recall_file_of(given.get("reference_layer"))) is None else read_recommendation(file)
        if measured is not None:
            given["reference_layer"] = measured.layer(str(given.get("reduction", "max")))
        options_class = load(family_named(self._family_name).options)
        known = {*options_class.names(), *accepted}
        check_names(given, known)
        given = typed(given, signature)
        check_choice("video_decode_backend", given.get("video_decode_backend", "pyav"), self._decoders)
        options_class.resolve(given, {})  # cheap complaints first: before even the configuration is read

        named = str(given.get("pretrained", signature["pretrained"].default))
        pretrained = checkpoint(named, self._family_name)
        self._shipped_name = named if pretrained != named else None
        pretrained = os.path.expanduser(pretrained)  # no shell does it within --model_args
        if selector is not None:
            folder = checkpoint(str(selector), self._family_name, selector=True)
            given["selector_path"] = os.path.expanduser(folder)
        config = self._checkpoint_config(pretrained)
        num_layers = config.get_text_config().num_hidden_layers
        if measured is not None:
            measured.check(self._family_name, num_layers)
        own = getattr(config, "flexselect", None)
        raw = raw_config(pretrained, self._revision)
        fill = self._checkpoint_arguments(config) | preset(self._family_name, pretrained, own, num_layers, raw)
        if given.get("selector") == "lite":
            fill |= self._selector_options(read_selector_config(str(given["selector_path"])))
        check_names(fill, known)
        fill = typed(fill, signature)
        said, level = preset_message(self._family_name, pretrained, own, raw)
        logger.log(level, said)
        self.options = options_class.resolve(given, fill)
        self.options.check_model(num_layers)
        merged = {**fill, **given, "pretrained": pretrained}
        upstream_args = {name: value for name, value in merged.items() if name in accepted}
        complete = {**{n: signature[n].default for n in accepted}, **upstream_args}
        check_common(complete)
        check_defaults(complete, signature, self._without_effect)
        self._check_upstream(complete)
        if not torch.cuda.is_available():
            upstream_args["device"] = upstream_args.get("device") or "cpu"
        if _on_cpu(upstream_args):
            upstream_args["device_map"] = self._device_map_on_cpu
        return upstream_args

    def _checkpoint(self, upstream_args: dict[str, Any]) -> dict[str, Any]:
        """What the model that was loaded is, and its selector: names for people, and hashes of what they hold."""
        pretrained, revision = upstream_args["pretrained"], upstream_args.get("revision")
        identity = identify(self._family_name, pretrained, raw_config(pretrained, self._revision))
        told = {
            "name": self._shipped_name or identity.name,
            "preset": identity.model,
            "content": content_id(pretrained, revision),
        }
        if self.options.selector_path is None:
            return told
        return {**told, "selector_content": content_id(self.options.selector_path)}

    def _cache_identity(self) -> str:
        """All that answers depend on but the request itself, for lmms-eval's response cache.

        Its own keys have the model arguments by their text: a file or folder by its name, whatever is in it now.
        """
        checkpoint = self.resolved["checkpoint"]
        contents = [checkpoint[name] or uuid.uuid4().hex for name in checkpoint if name.endswith("content")]
        by_content = {"pretrained", "selector_path", "upstream", "checkpoint", *OPERATIONAL, *PLACEMENT}
        merged = {**self.resolved["upstream"], **self.resolved}
        options = {name: value for name, value in merged.items() if name not in by_content}
        return json.dumps([type(self).__qualname__, __version__, contents, options], sort_keys=True)

    def _load(self, upstream_args: dict[str, Any]) -> None:
        """Let upstream load the model, with our dtype, a strict check of its weights, and CPU processes allowed."""
        check_machine(upstream_args)
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
        return selector_class(self.options.selector).from_options(self.options, family)

    @property
    def num_layers(self) -> int:
        """How many layers the decoder has."""
        return len(self.family.decoder.layers)

    def rank_at(self, layer: int) -> None:
        """Rank at another layer from now on; with ``selector=flexselect``.

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
