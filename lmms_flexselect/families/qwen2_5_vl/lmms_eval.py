"""``--model qwen2_5_vl_flexselect``: upstream's Qwen2.5-VL wrappers with the visual tokens selected."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as UpstreamChat
from lmms_eval.models.simple import qwen2_5_vl as upstream
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as UpstreamSimple

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.grid_frames import FrameSampling
from lmms_flexselect.families.qwen2_5_vl.family import Qwen2_5_VL
from lmms_flexselect.families.qwen2_5_vl.options import Options
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.models.grid_media import AddedPrompts
from lmms_flexselect.models.grid_plugin import GridPlugin, check_video_names
from lmms_flexselect.models.records import Answer
from lmms_flexselect.models.running import abort_run
from lmms_flexselect.models.upstream import StrictLoader, with_visuals

_UPSTREAM_SIMPLE_FPS = 2.0
_UPSTREAM_SIMPLE_VIDEOS = (".mp4", ".avi", ".mov")


class _Qwen2_5_VLPlugin(GridPlugin):
    options: Options
    interleave_visuals: bool
    upstream_name = _family_name = "qwen2_5_vl"
    _upstream_module = upstream

    def _family(self, model: Any) -> Qwen2_5_VL:
        return Qwen2_5_VL(model, rope=self.options.rope, seconds_per_unit=self.options.seconds_per_unit)

    def _checkpoint_config(self, pretrained: str) -> Any:
        return checkpoint_config(pretrained, self.upstream_name)

    def _loaders(self) -> dict[str, Any]:
        name = "Qwen2_5_VLForConditionalGeneration"
        return {name: StrictLoader(getattr(upstream, name), self.options.dtype)}


class Qwen2_5_VLFlexSelect(_Qwen2_5_VLPlugin, UpstreamChat):
    """Chat class. Frames: at most `max_num_frames`, and at most `fps` a second where that is given."""

    _overrides = frozenset({"fps"})

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        super()._check_upstream(upstream_args)
        if upstream_args["interleave_visuals"]:
            raise OptionError(
                "interleave_visuals=True: only with --force_simple; a chat task says itself where its visuals are"
            )

    def _added(self) -> AddedPrompts:
        # Upstream's chat loop leaves both out. Its default is what the chat template says without any.
        default = inspect.signature(UpstreamChat.__init__).parameters["system_prompt"].default
        system = None if self.system_prompt == default else self.system_prompt
        return AddedPrompts(system, self.reasoning_prompt)

    def _sampling(self) -> FrameSampling:
        sampling = FrameSampling(self.max_num_frames, self.fps)
        # Upstream opens each video once more to count its frames unless a rate is set; the count is not used here.
        self.fps = self.fps or 0.0
        return sampling

    def generate_until_multi_round(self, requests: list[Any]) -> list[Answer]:
        """Upstream's loop takes a simple model's requests, and a chat model is given others."""
        abort_run(
            FlexSelectError("qwen2_5_vl: lmms-eval's chat class cannot answer multi-round tasks; give --force_simple")
        )


class _NoProbe:
    """In place of decord where upstream only looks at the first frame."""

    class VideoReader:
        def __init__(self, path: str) -> None:
            self.path = path

        def __getitem__(self, index: int) -> _NoProbe.VideoReader:
            return self

        def asnumpy(self) -> Any:
            """An empty first frame."""
            return np.zeros((0, 0, 3), dtype=np.uint8)


class Qwen2_5_VLFlexSelectSimple(_Qwen2_5_VLPlugin, UpstreamSimple):
    """Simple class (``--force_simple``). Without `fps` frames are sampled as upstream's simple class does."""

    # Upstream opens every video once more for a frame size that it does not use.
    _upstream_replacements: ClassVar[Mapping[str, Any]] = {"decord": _NoProbe}

    def _sampling(self) -> FrameSampling:
        if self.fps is None:
            return FrameSampling(self.max_num_frames, thin_from_fps=_UPSTREAM_SIMPLE_FPS)
        return FrameSampling(self.max_num_frames, self.fps)

    def _pass_metadata(self) -> bool:
        # Upstream's simple class does not tell the processor the frame rate; its own positions are computed without.
        return self.options.rope == "published"

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        super()._check_upstream(upstream_args)
        if upstream_args["system_prompt"] is None:
            raise OptionError("system_prompt=none: with --force_simple one is always said; give its words")

    def _prepared(self, requests: list[Any]) -> list[Any]:
        change = _interleaved if self.interleave_visuals else _known_videos
        return with_visuals(super()._prepared(requests), change)


def _known_videos(visuals: list[Any], question: str) -> list[Any]:
    return check_video_names(visuals, _UPSTREAM_SIMPLE_VIDEOS)


def _interleaved(visuals: list[Any], question: str) -> list[Any]:
    """Raise `FlexSelectError` for visuals that upstream would leave out in silence because no ``<image 1>`` is said."""
    said = {min(int(number), len(visuals)) for number in re.findall(r"<image (\d+)>", question)}
    if missing := sorted({*range(1, len(visuals) + 1)} - said):
        raise FlexSelectError(f"interleave_visuals=True: no <image {missing[0]}> is in the question {question!r}")
    return _known_videos(visuals, question)
