"""``--model qwen2_5_vl_flexselect``: upstream's Qwen2.5-VL wrappers with the visual tokens selected."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as UpstreamChat
from lmms_eval.models.simple import qwen2_5_vl as upstream
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as UpstreamSimple

from lmms_flexselect.errors import FlexSelectError, OptionError, VideoError
from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.models._answering import stop
from lmms_flexselect.models._arguments import check_fps
from lmms_flexselect.models._loading import StrictLoader
from lmms_flexselect.models._media import PLACEHOLDERS, AddedPrompts, MediaProcessor, element_key, read_key
from lmms_flexselect.models._plugin import FlexSelectPlugin
from lmms_flexselect.models._preflight import Paths
from lmms_flexselect.models._questions import check_text
from lmms_flexselect.models._qwen_selecting_model import QwenSelectingModel
from lmms_flexselect.models._records import Answer
from lmms_flexselect.models._upstream import with_visuals
from lmms_flexselect.options import whole_number
from lmms_flexselect.training.readers import Qwen2_5_VLReader
from lmms_flexselect.video import FrameSampling, SampledVideo
from lmms_flexselect.video_key import VideoKey

_FRAMES_PER_UNIT = 2
_UPSTREAM_SIMPLE_FPS = 2.0
_UPSTREAM_SIMPLE_VIDEOS = (".mp4", ".avi", ".mov")


class _Qwen2_5_VLPlugin(FlexSelectPlugin):
    fps: float | None
    max_num_frames: int
    max_pixels: int
    min_pixels: int
    processor: Any
    system_prompt: str | None
    reasoning_prompt: str | None
    interleave_visuals: bool
    upstream_name = _family_name = "qwen2_5_vl"
    _upstream_module = upstream
    _placeholders = PLACEHOLDERS

    def _family(self, model: Any) -> Qwen2_5_VL:
        return Qwen2_5_VL(model, rope=self.options.rope, seconds_per_unit=self.options.seconds_per_unit)

    def _selecting_model(self, *arguments: Any) -> QwenSelectingModel:
        self._sampled = self._sampling()
        self._bare_processor = self.processor
        self.processor = MediaProcessor(
            self.processor,
            self._sampled,
            self.options.strict,
            self._pass_metadata(),
            self._frames,
            has_video=self._has_video,
            added=self._added(),
        )
        return QwenSelectingModel(*arguments)

    def _video_keys(self, paths: Paths) -> Iterable[VideoKey | None]:
        # As upstream's loops write a video into their messages.
        bounds = {"max_pixels": self.max_pixels, "min_pixels": self.min_pixels}
        return [element_key({"video": path, **bounds}, self._sampled) for path in paths]

    def _read_video(self, key: VideoKey) -> SampledVideo:
        return read_key(key)

    def _needs_frames(self, key: VideoKey) -> bool:
        return not self.processor.knows(key)

    def _frame_count(self, frames: int, fps: float) -> int:
        return min(self._sampled.count(frames, fps), self._sampled.max_frames)

    def reader(self) -> Qwen2_5_VLReader:
        """See `FlexSelectPlugin.reader`."""
        pixels = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        sampling = FrameSampling(self.max_num_frames, self.fps or None)
        return Qwen2_5_VLReader(self.family, self._bare_processor, sampling, pixels)

    def _sampling(self) -> FrameSampling:
        raise NotImplementedError

    def _pass_metadata(self) -> bool:
        return True

    def _config(self, pretrained: str) -> Any:
        return checkpoint_config(pretrained, self.upstream_name)

    def _loaders(self) -> dict[str, Any]:
        name = "Qwen2_5_VLForConditionalGeneration"
        return {name: StrictLoader(getattr(upstream, name), self.options.dtype)}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        frames = whole_number("max_num_frames", upstream_args["max_num_frames"], at_least=_FRAMES_PER_UNIT)
        check_fps(upstream_args["fps"], ", or none to spread max_num_frames over the video")
        lowest, highest = (whole_number(n, upstream_args[n], at_least=1) for n in ("min_pixels", "max_pixels"))
        if lowest > highest:
            raise OptionError(f"min_pixels={lowest} exceeds max_pixels={highest}; give both")
        self.options.check_frames(-(-frames // _FRAMES_PER_UNIT))
        for name in ("system_prompt", "reasoning_prompt"):
            check_text(upstream_args[name] or "", PLACEHOLDERS, name)

    def _added(self) -> AddedPrompts:
        """What is said beside a task's own messages, where upstream's loop does not do it."""
        return AddedPrompts()


class Qwen2_5_VLFlexSelect(_Qwen2_5_VLPlugin, UpstreamChat):
    """Chat class. Frames: at most `max_num_frames`, and at most `fps` a second where that is given."""

    is_simple = False

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
        stop(FlexSelectError("qwen2_5_vl: lmms-eval's chat class cannot answer multi-round tasks; give --force_simple"))


class Qwen2_5_VLFlexSelectSimple(_Qwen2_5_VLPlugin, UpstreamSimple):
    """Simple class (``--force_simple``). Without `fps` frames are sampled as upstream's simple class does."""

    def _sampling(self) -> FrameSampling:
        if self.fps is None:
            return FrameSampling(self.max_num_frames, thin_from_fps=_UPSTREAM_SIMPLE_FPS)
        return FrameSampling(self.max_num_frames, self.fps)

    def _pass_metadata(self) -> bool:
        # Upstream's simple class does not tell the processor the frame rate; its own positions are computed without.
        return self.options.rope == "published"

    def _stand_ins(self) -> dict[str, Any]:
        # Upstream opens every video once more for a frame size that it does not use.
        return {"decord": _NoProbe}

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        super()._check_upstream(upstream_args)
        if upstream_args["system_prompt"] is None:
            raise OptionError("system_prompt=none: with --force_simple one is always said; give its words")

    def _prepared(self, requests: list[Any]) -> list[Any]:
        change = _interleaved if self.interleave_visuals else _known_videos
        return with_visuals(super()._prepared(requests), change)


def _known_videos(visuals: list[Any], question: str) -> list[Any]:
    """Raise `VideoError` for a video that upstream would leave out in silence because of its name."""
    for visual in visuals:
        if isinstance(visual, str) and not visual.endswith(_UPSTREAM_SIMPLE_VIDEOS):
            raise VideoError(f"{visual}: with --force_simple only {', '.join(_UPSTREAM_SIMPLE_VIDEOS)} are read")
    return visuals


def _interleaved(visuals: list[Any], question: str) -> list[Any]:
    """Raise `FlexSelectError` for visuals that upstream would leave out in silence because no ``<image 1>`` is said."""
    said = {min(int(number), len(visuals)) for number in re.findall(r"<image (\d+)>", question)}
    if missing := sorted({*range(1, len(visuals) + 1)} - said):
        raise FlexSelectError(f"interleave_visuals=True: no <image {missing[0]}> is in the question {question!r}")
    return _known_videos(visuals, question)


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
