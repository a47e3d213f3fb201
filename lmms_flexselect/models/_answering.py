"""The running half of every ``*_flexselect`` class: upstream's loops, in an order and on processes of our choice."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NoReturn

from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.models._frames import Frames
from lmms_flexselect.models._order import InOrder, in_video_order
from lmms_flexselect.models._preflight import Paths, check_videos, request_videos
from lmms_flexselect.models._records import DocumentLog, gather, results_block
from lmms_flexselect.models._regroup import share
from lmms_flexselect.models._selecting_model import SelectingModel
from lmms_flexselect.models._upstream import EscapeUpstream, command_line, our_tasks, replaced
from lmms_flexselect.options import FlexSelectOptions
from lmms_flexselect.processes import Processes
from lmms_flexselect.video.checking import Length
from lmms_flexselect.video.reading import check_video
from lmms_flexselect.video_key import VideoKey

_MODEL_OVER_ALL = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class Answering(lmms):
    """Stands before an upstream wrapper, whose loop stays in charge, and is handed what it asks for.

    That is something that reads the videos (a family's own), a model that selects before it generates
    (`SelectingModel`), and a `task_dict` that tells which document is being read (`DocumentLog`). One video's requests
    come one after the other, on one process, and the next videos are read ahead.
    """

    options: FlexSelectOptions
    resolved: dict[str, Any]
    task_dict: DocumentLog
    family: Any
    _selecting: SelectingModel | None
    _frames: Frames[Any]
    _processes: Processes
    _joined: bool
    _lengths: dict[str, Length | None]

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

    def _stand_ins(self) -> dict[str, Any]:
        """What upstream's loop is shown in its module while it runs, besides what orders its requests."""
        return {}

    # Running ------------------------------------------------------------------------------------------------------

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
            regroups = self._regroups(requests)
            if self.options.strict or regroups:
                self._lengths = check_videos(videos, self._check_video, self.options.strict)
            if regroups:
                return self._regrouped(kind, requests, videos)
            return self._answers(kind, requests, videos)
        except EscapeUpstream as escape:
            error = escape.__cause__
        except Exception as own:
            error = own
        assert error is not None
        stop(error)

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
        for length in map(self._lengths.get, paths):
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


def stop(error: BaseException) -> NoReturn:
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
