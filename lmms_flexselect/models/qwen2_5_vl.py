"""``--model qwen2_5_vl_flexselect``: upstream's Qwen2.5-VL wrappers with the visual tokens selected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as UpstreamChat
from lmms_eval.models.simple import qwen2_5_vl as upstream
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as UpstreamSimple

from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
from lmms_flexselect.families.qwen2_5_vl_frames import FrameSampling, SampledVideo
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.models._loading import StrictLoader
from lmms_flexselect.models._media import MediaProcessor, element_key, read_key
from lmms_flexselect.models._plugin import FlexSelectPlugin
from lmms_flexselect.models._preflight import Paths
from lmms_flexselect.models._qwen_selecting_model import QwenSelectingModel
from lmms_flexselect.models._upstream import with_visuals
from lmms_flexselect.options import whole_number
from lmms_flexselect.training.readers import Qwen2_5_VLReader
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
    upstream_name = _family_name = "qwen2_5_vl"
    _upstream_module = upstream

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
            backend=self.backend,
        )
        return QwenSelectingModel(self.processor, *arguments)

    def _video_keys(self, paths: Paths) -> Iterable[VideoKey | None]:
        # As upstream's loops write a video into their messages.
        bounds = {"max_pixels": self.max_pixels, "min_pixels": self.min_pixels}
        return [element_key({"video": path, **bounds}, self._sampled, self.backend) for path in paths]

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
        fps = upstream_args["fps"]
        if fps is not None and (isinstance(fps, (bool, str)) or not fps > 0):
            shown = f"{fps:g}" if isinstance(fps, float) else fps
            raise OptionError(f"fps={shown}: must be greater than 0, or none to spread max_num_frames over the video")
        lowest, highest = upstream_args["min_pixels"], upstream_args["max_pixels"]
        if lowest > highest:
            raise OptionError(f"min_pixels={lowest} exceeds max_pixels={highest}; give both")
        self.options.check_frames(-(-frames // _FRAMES_PER_UNIT))

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        if str(given.get("fps", "")).lower() == "none":
            given = {**given, "fps": None}
        return super()._resolve(given)


class Qwen2_5_VLFlexSelect(_Qwen2_5_VLPlugin, UpstreamChat):
    """Chat class. Frames: at most `max_num_frames`, and at most `fps` a second where that is given."""

    is_simple = False

    def _sampling(self) -> FrameSampling:
        sampling = FrameSampling(self.max_num_frames, self.fps)
        # Upstream opens each video once more to count its frames unless a rate is set; the count is not used here.
        self.fps = self.fps or 0.0
        return sampling


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

    def _prepared(self, requests: list[Any]) -> list[Any]:
        return with_visuals(requests, _known_videos)


def _known_videos(visuals: list[Any], question: str) -> list[Any]:
    """Raise `VideoError` for a video that upstream would leave out in silence because of its name."""
    for visual in visuals:
        if isinstance(visual, str) and not visual.endswith(_UPSTREAM_SIMPLE_VIDEOS):
            raise VideoError(f"{visual}: with --force_simple only {', '.join(_UPSTREAM_SIMPLE_VIDEOS)} are read")
    return visuals


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
