"""What every ``*_flexselect`` class adds to the upstream wrapper it subclasses."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NoReturn

import torch
from accelerate import Accelerator
from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger

from lmms_flexselect.analysis.measured import measured_in, read_measured
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.flexselect import FlexSelect
from lmms_flexselect.lite.checkpoint import SelectorConfig, load_selector, read_selector_config
from lmms_flexselect.models._frames import Frames
from lmms_flexselect.models._loading import OneProcess
from lmms_flexselect.models._order import InOrder, in_video_order
from lmms_flexselect.models._preflight import Paths, check_videos, request_videos
from lmms_flexselect.models._records import DocumentLog, gather, results_block
from lmms_flexselect.models._regroup import share
from lmms_flexselect.models._selecting_model import SelectingModel
from lmms_flexselect.models._upstream import (
    EscapeUpstream,
    ask_behind_cache,
    command_line,
    our_tasks,
    replaced,
    use_upstream_prompts,
)
from lmms_flexselect.needle import CHECKPOINTS, PRETRAINED
from lmms_flexselect.options import FlexSelectOptions, check_names
from lmms_flexselect.presets import preset
from lmms_flexselect.processes import Processes
from lmms_flexselect.selectors import Random, Selector, Uniform
from lmms_flexselect.store import VideoStore
from lmms_flexselect.training.readers import Reader
from lmms_flexselect.video_file import file_complaint, video_length
from lmms_flexselect.video_key import VideoKey

_MODEL_OVER_ALL = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class FlexSelectPlugin(lmms):
    """Mixed in before an upstream wrapper; everything family-neutral lives here once.

    The upstream loop stays in charge. It is handed something that reads the videos (a family's own), a model that
    selects before it generates (`SelectingModel`), and a `task_dict` that tells which document is being read
    (`DocumentLog`).
    """

    upstream_name: ClassVar[str]
    _upstream_module: ClassVar[ModuleType]
    _device_map_on_cpu: ClassVar[str] = "cpu"
    _family_name: ClassVar[str]
    """Of presets, options and needle checkpoint: upstream's name of the class that reads the family."""

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
            _stop(error)
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

    def _prepared(self, requests: list[Any]) -> list[Any]:
        """The requests as upstream's loop gets them."""
        return requests

    def _file_complaint(self, path: str) -> str | None:
        """What is wrong with a video, seen from outside."""
        return file_complaint(path)

    def _video_keys(self, paths: Paths) -> Iterable[VideoKey | None]:
        """What the videos of a request will be read by, in order; None for what is none."""
        raise NotImplementedError

    def _read_video(self, key: VideoKey) -> Any:
        """Frames of a video, in any thread."""
        raise NotImplementedError

    def _needs_frames(self, key: VideoKey) -> bool:
        """Whether a video's frames will be asked for, as it looks now."""
        return True

    def _has_video(self, key: VideoKey) -> bool:
        """The family's answer; a processor that held the family itself would keep the model beyond `clean`."""
        return self.family.has_video(key)

    def _frame_count(self, frames: int, fps: float) -> int:
        """How many frames are read of a video of so many, at so many a second."""
        raise NotImplementedError

    def _stand_ins(self) -> dict[str, Any]:
        """What upstream's loop is shown in its module while it runs, besides what orders its requests."""
        return {}

    # Construction -------------------------------------------------------------------------------------------------

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Split the model arguments into ours and upstream's, and check all that can be checked without weights."""
        upstream_init = super().__init__
        signature = inspect.signature(upstream_init).parameters
        accepted = [name for name, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = {name: value for name, value in given.items() if name != "max_batch_size"}  # lmms-eval's, unused
        if given.get("selector") == "lite" and given.get("pretrained") == "needle":
            given.setdefault("selector_path", "needle")
        measured = None if (file := measured_in(given.get("reference_layer"))) is None else read_measured(file)
        if measured is not None:
            given["reference_layer"] = measured.layer(str(given.get("reduction", "max")))
        known = {*FlexSelectOptions.names_for(self._family_name), *accepted}
        check_names(given, known)
        FlexSelectOptions.resolve(given, {})  # cheap complaints first: before even the configuration is read

        pretrained = given.get("pretrained", signature["pretrained"].default)
        if pretrained in PRETRAINED and not os.path.exists(pretrained):
            pretrained = str(PRETRAINED[pretrained] / self._family_name)
        if given.get("selector_path") == "needle" and not os.path.exists("needle"):
            given["selector_path"] = str(CHECKPOINTS / self._family_name / "selector")
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

    # Running ------------------------------------------------------------------------------------------------------

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

    @property
    def model(self) -> Any:
        """What upstream's loop calls `generate` on."""
        return getattr(self, "_selecting", None) or super().model

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Upstream's loop; its answers, with the tokens that the language model read counted."""
        return self._run("generate_until", requests)

    def behind_cache(self, kind: str, requests: list[Any]) -> None:
        """Called when lmms-eval's response cache is done: take part in what others ask, unless that was done."""
        if kind in ("generate_until", "loglikelihood") and self._regroups(requests) and not self._joined:
            self._run(kind, [])
        self._joined = False

    def _run(self, kind: str, requests: list[Any]) -> list[Any]:
        """Answers by one of upstream's loops, after a look at all videos; an error ends the run."""
        error: BaseException | None
        try:
            videos = request_videos(requests, self.task_dict)
            self.task_dict.last(0)  # nobody's turn yet
            if self.options.strict:
                check_videos(videos, self._file_complaint)
            if self._regroups(requests):
                return self._regrouped(kind, requests, videos)
            return self._answers(kind, requests, videos)
        except EscapeUpstream as escape:
            error = escape.__cause__
        except Exception as own:
            error = own
        assert error is not None
        _stop(error)

    def _regroups(self, requests: list[Any]) -> bool:
        """Whether several processes share their requests out anew; the same on each.

        Not where a model lies over all of them, so that they must compute in step; nor for the steps of an agent, which
        lmms-eval asks for one by one, on each process as many as it takes.
        """
        in_step = str(getattr(getattr(self, "accelerator", None), "distributed_type", "")).endswith(_MODEL_OVER_ALL)
        tasks = our_tasks()
        agentic = any(getattr(tasks.get(r.args[-2]), "OUTPUT_TYPE", None) == "generate_until_agentic" for r in requests)
        return len(self._processes) > 1 and bool(tasks) and not agentic and not in_step

    def _regrouped(self, kind: str, requests: list[Any], videos: list[Paths]) -> list[Any]:
        """Answers to this process's requests, from whichever process was given their videos."""
        self._joined = True
        answer = functools.partial(self._answers, kind)
        return share(requests, videos, self._weight, answer, self._processes, our_tasks())

    def _weight(self, paths: Paths) -> float:
        """How long a request about these videos takes: the frames that are read of them, of a bad one 1."""
        weight = 0
        for length in map(video_length, paths):
            try:
                weight += self._frame_count(*length) if length else 1
            except ValueError:  # too short to be read: that shows when it is its turn
                weight += 1
        return float(max(1, weight))

    def _answers(self, kind: str, requests: list[Any], videos: list[Paths]) -> list[Any]:
        """Answers by one of upstream's loops, which gets one video's requests together, with videos decoded ahead."""
        if not requests:
            return []
        loop = getattr(super(), kind)
        module = sys.modules[loop.__module__]
        stand_ins = self._stand_ins()
        if hasattr(module, "utils"):
            stand_ins["utils"] = SimpleNamespace(**{**vars(utils), "Collator": InOrder})
        order = in_video_order(requests, videos, int(self.batch_size))
        keys = {paths: [key for key in self._video_keys(paths) if key is not None] for paths in set(videos)}
        self._frames.plan(key for i in order for key in keys[videos[i]])
        try:
            with replaced(module, **stand_ins):
                answers = loop(self._prepared([requests[i] for i in order]))
        finally:
            self._frames.close()
        if kind == "generate_until":
            answers = self._counted([requests[i] for i in order], answers)
        given = dict(zip(order, answers, strict=True))
        return [given[i] for i in range(len(requests))]

    def _counted(self, requests: list[Any], answers: list[Any]) -> list[GenerationResult]:
        assert self._selecting is not None
        counted = {record.key: record for record in self._selecting.records}
        documents = [(task, split, doc_id) for doc_id, task, split in (request.args[-3:] for request in requests)]
        return [self._with_counts(a, counted.get(d)) for a, d in zip(answers, documents, strict=True)]

    def clean(self) -> None:
        """lmms-eval's end of inference: on every process, once. Hands in the measurements, then frees the model."""
        records = gather(self._selecting.records if self._selecting else [])
        block = results_block(self.resolved, records)
        self.flexselect_results = block
        if (arguments := command_line()) is not None:
            arguments.flexselect = block  # goes into the results file, also if everything came out of a cache
        if self.rank == 0 and records:
            # Upstream's chat classes have reported time and tokens already; the simple ones report nothing.
            reported = not self.is_simple
            seconds = 0.0 if reported else sum(r.generate_seconds for r in records)
            tokens = 0 if reported else sum(r.output_tokens for r in records)
            log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, block["overall"])
        self._selecting = self.family = None
        super().clean()

    @staticmethod
    def _with_counts(answer: Any, record: Any) -> GenerationResult:
        text = answer.text if isinstance(answer, GenerationResult) else answer
        if record is None:
            return answer if isinstance(answer, GenerationResult) else GenerationResult(text)
        return GenerationResult(text, TokenCounts(record.input_tokens, record.output_tokens))


def _on_cpu(upstream_args: dict[str, Any]) -> bool:
    return str(upstream_args.get("device") or "").startswith("cpu")


def _stop(error: BaseException) -> NoReturn:
    """Raise; in a run of several processes end this one, so that the launcher ends the others.

    lmms-eval catches exceptions and exits with 0. Alone, that leaves no results file and the message as its last
    line. With others it would leave them waiting for this process until their time-out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not isinstance(error, FlexSelectError):
            traceback.print_exception(error)
        print(f"lmms-flexselect: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    raise error
