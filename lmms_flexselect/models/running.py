"""The running half of every ``*_flexselect`` class: upstream's loops, in an order and on processes of our choice."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

from lmms_eval import utils
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from lmms_flexselect.errors import FlexSelectError, first_line
from lmms_flexselect.models.reading import Frames
from lmms_flexselect.models.records import Answer, answer_of, results_block
from lmms_flexselect.models.requests import (
    NoProgress,
    OneBatch,
    Paths,
    check_requests,
    check_videos,
    in_batches,
    request_videos,
    take_apart,
)
from lmms_flexselect.models.scheduling import is_padding, redistribute
from lmms_flexselect.models.selecting_model import SelectingModel
from lmms_flexselect.models.upstream import EscapeUpstream, command_line, copies, our_tasks, replaced
from lmms_flexselect.options import FlexSelectOptions
from lmms_flexselect.runtime.processes import Processes, ended_by_signals
from lmms_flexselect.video.checking import Length
from lmms_flexselect.video.key import VideoKey
from lmms_flexselect.video.reading import check_video

_MODEL_OVER_ALL = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class RequestRunner(lmms):
    """Stands before an upstream wrapper, whose loop stays in charge, and is handed what it asks for.

    That is something that reads the videos (a family's own), and a model that selects before it generates
    (`SelectingModel`). One video's requests come one after the other, on one process, and the next videos are read
    ahead.
    """

    options: FlexSelectOptions
    resolved: dict[str, Any]
    cache_identity: str
    upstream_name: ClassVar[str]
    _answers_in_batches: ClassVar[str | None] = "generate_until"
    """The kind of requests of which upstream's loop hands the model several at once, if the batch size says so."""
    _placeholders: ClassVar[tuple[str, ...]] = ()
    """What the model reads as the place of an image or a video; no question may have it in it."""
    _upstream_replacements: ClassVar[Mapping[str, Any]] = {}
    """What upstream's loops see in their module under these names while they run, besides what orders requests."""
    _overrides: ClassVar[frozenset[str]] = frozenset(
        {
            "generate_until",
            "generate_until_multi_round",
            "generate_visual_cot",
            "loglikelihood",
            "clean",
            "model",
        }
    )
    """Names of upstream's that a class defines or sets anew, and means to: see `lmms_flexselect.models.contract`."""
    family: Any
    _selecting: SelectingModel | None
    _frames: Frames[Any]
    _processes: Processes
    _joined: bool
    _answered: list[tuple[Any, Answer]]

    # What a family's class says of itself -------------------------------------------------------------------------

    def _prepared(self, requests: list[Any]) -> list[Any]:
        """The requests as upstream's loop gets them."""
        return requests

    def _check_video(self, path: str) -> Length:
        """Frames and rate of a video by a look that decodes nothing; raises `VideoError`."""
        return check_video(path, self.options.video_timeout)

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

    # Running ------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """What upstream's loop calls `generate` on."""
        return getattr(self, "_selecting", None) or super().model

    def generate_until(self, requests: list[Any]) -> list[Answer]:
        """Upstream's loop; its answers, with the tokens that the language model read counted."""
        return self._run("generate_until", requests)

    def generate_until_multi_round(self, requests: list[Any]) -> list[Answer]:
        """The same for tasks that go on asking: of each request the list of its rounds' answers."""
        return self._run("generate_until_multi_round", requests)

    def generate_visual_cot(self, requests: list[Any]) -> list[Answer]:
        """The same for tasks that have the model draw, if upstream's class can."""
        return self._run("generate_visual_cot", requests)

    def loglikelihood(self, requests: list[Any]) -> list[Answer]:
        """The same: the mean negative log-likelihood of each target, and whether it is the likeliest text."""
        return self._run("loglikelihood", requests)

    def keep(self, answered: list[tuple[Any, Answer]]) -> None:
        """Keep the answers of a run that is ending before its end; while lmms-eval's response cache asks, that does."""

    def after_response_cache(self, kind: str, requests: list[Any]) -> None:
        """Called when lmms-eval's response cache is done: take part in what others ask, unless that was done."""
        if self._regroups(requests) and not self._joined:
            self._run(kind, [])
        self._joined = False

    def _run(self, kind: str, requests: list[Any]) -> list[Answer]:
        """Answers by one of upstream's loops, after a look at all videos; an error or a signal ends the run."""
        error: BaseException | None
        self._answered = []
        try:
            with ended_by_signals():
                check_requests(requests, self._placeholders)
                videos = request_videos(requests, self.task_dict)
                regroups = self._regroups(requests)
                if self.options.strict or regroups:
                    self._lengths = check_videos(videos, self._check_video, self.options.strict)
                if regroups:
                    return self._regrouped(kind, requests, videos)
                return self._answers(kind, requests, videos)
        except EscapeUpstream as escape:
            error = escape.__cause__
        except (Exception, KeyboardInterrupt, SystemExit) as own:
            error = own
        assert error is not None
        if isinstance(error, NotImplementedError) and traceback.extract_tb(error.__traceback__)[-1].name == kind:
            error = FlexSelectError(f"{self.upstream_name}: lmms-eval's class does not answer {kind} requests")
        if self._answered:
            try:
                self.keep(self._answered)
            except Exception as lost:
                logger.warning(f"the {len(self._answered)} answers so far were not kept ({first_line(lost)})")
        abort_run(error)

    def _regroups(self, requests: list[Any]) -> bool:
        """Whether several processes share their requests out anew; the same on each.

        Not where a model lies over all of them, so that they must compute in step; nor for the steps of an agent, which
        lmms-eval asks for one by one, on each process as many as it takes.
        """
        in_step = str(getattr(getattr(self, "accelerator", None), "distributed_type", "")).endswith(_MODEL_OVER_ALL)
        tasks = our_tasks()
        names = {take_apart(request).document[0] for request in requests}
        agentic = any(getattr(tasks.get(name), "OUTPUT_TYPE", None) == "generate_until_agentic" for name in names)
        return len(self._processes) > 1 and bool(tasks) and not agentic and not in_step

    def _regrouped(self, kind: str, requests: list[Any], videos: list[Paths]) -> list[Any]:
        """Answers to this process's requests, from whichever process was given their videos."""
        self._joined = True
        answer = functools.partial(self._answers, kind)
        return redistribute(requests, videos, self._weight, answer, self._processes, our_tasks())

    def _weight(self, paths: Paths) -> float:
        """How long a request about these videos takes: the frames that are read of them, of a bad one 1."""
        weight = 0
        for length in map(self._lengths.get, paths):
            try:
                weight += self._frame_count(*length) if length else 1
            except ValueError:  # too short to be read: that shows when it is its turn
                weight += 1
        return float(max(1, weight))

    def _answers(self, kind: str, requests: list[Any], videos: list[Paths]) -> list[Answer]:
        """Answers by one of upstream's loops, which gets one batch after the other, with videos decoded ahead.

        So it is known whose turn it is when the loop calls the model, and each batch's answers are there at once.
        """
        if not requests:
            return []
        loop = getattr(super(), kind)
        module = sys.modules[loop.__module__]
        ours: dict[str, Any] = {
            "utils": SimpleNamespace(**{**vars(utils), "Collator": OneBatch}),
            "tqdm": NoProgress,
            "log_metrics": lambda **measured: None,  # of one batch; `clean` reports the run's
        }
        ours |= self._upstream_replacements
        replacements = {name: value for name, value in ours.items() if hasattr(module, name)}
        batches = in_batches(requests, videos, int(self.batch_size) if kind == self._answers_in_batches else 1)
        keys = {paths: [key for key in self._video_keys(paths) if key is not None] for paths in set(videos)}
        self._frames.plan(key for batch in batches for i in batch for key in keys[videos[i]])
        answers: dict[int, Answer] = {}
        assert self._selecting is not None
        self._selecting.begin_run()
        try:
            with (
                replaced(module, **replacements),
                tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding", mininterval=0) as bar,
            ):
                for batch in batches:
                    given = self._batch_answers(kind, loop, [requests[i] for i in batch], [videos[i] for i in batch])
                    answers.update(zip(batch, given, strict=True))
                    self._answered += [(requests[i], answers[i]) for i in batch if answers[i].error is None]
                    bar.update(len(batch))
        finally:
            self._frames.close()
        return [answers[i] for i in range(len(requests))]

    def _batch_answers(self, kind: str, loop: Any, batch: list[Any], videos: list[Paths]) -> list[Answer]:
        assert self._selecting is not None
        # Later rounds show what the task says then.
        shown = videos if kind != "generate_until_multi_round" else [None] * len(batch)
        documents = [take_apart(request).document for request in batch]
        self._selecting.begin(list(zip(documents, shown, strict=True)))
        records = self._selecting.records
        before = len(records)
        given = loop(self._prepared(copies(batch)))
        made = [records[before + row :: len(batch)] for row in range(len(batch))]
        if len(given) != len(batch) or not all(len(of_one) == len(made[0]) > 0 for of_one in made):
            raise RuntimeError(f"lmms-eval's {self.upstream_name} gave {len(given)} answers for {len(batch)} requests")
        answers = [answer_of(kind, *of_one) for of_one in zip(given, made, strict=True)]
        records[before:] = [
            r for request, of_one in zip(batch, made, strict=True) for r in of_one if not is_padding(request)
        ]
        return answers

    def clean(self) -> None:
        """lmms-eval's end of inference: on every process, once. Hands in the measurements, then frees the model."""
        try:
            everyone = self._processes.gather(self._selecting.records if self._selecting else [])
        except FlexSelectError as error:
            abort_run(error)
        records = [record for of_process in everyone for record in of_process]
        block = results_block(self.resolved, records)
        self.flexselect_results = block
        if (arguments := command_line()) is not None:
            arguments.flexselect = block  # goes into the results file, also if everything came out of a cache
        if self.rank == 0 and records:
            seconds, tokens = (sum(getattr(r, name) for r in records) for name in ("generate_seconds", "output_tokens"))
            log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, block["overall"])
        self._selecting = self.family = None
        super().clean()


def abort_run(error: BaseException) -> NoReturn:
    """Raise; in a run of several processes end this one, so that the launcher ends the others.

    lmms-eval catches exceptions and exits with 0. Alone, that leaves no results file and the message as its last
    line. With others it would leave them waiting for this process until their time-out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        by_signal = isinstance(error, (KeyboardInterrupt, SystemExit))
        if not by_signal and not isinstance(error, FlexSelectError):
            traceback.print_exception(error)
        print(f"lmms-flexselect: {'interrupted' if by_signal else error}", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT if by_signal else 1)
    raise error
