"""``--model qwen2_5_vl_flexselect``: upstream's Qwen2.5-VL wrappers with the visual tokens selected."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as UpstreamChat
from lmms_eval.models.simple import qwen2_5_vl as upstream
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as UpstreamSimple

from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
from lmms_flexselect.models._plugin import FlexSelectPlugin
from lmms_flexselect.models._upstream import replaced
from lmms_flexselect.options import whole_number
from lmms_flexselect.video import FrameSampling

_FRAMES_PER_UNIT = 2
_UPSTREAM_SIMPLE_FPS = 2.0
_UPSTREAM_SIMPLE_VIDEOS = (".mp4", ".avi", ".mov")


class _Qwen2_5_VLPlugin(FlexSelectPlugin):
    fps: float | None
    max_num_frames: int
    upstream_name = "qwen2_5_vl"
    _upstream_module = upstream
    _upstream_loads = "Qwen2_5_VLForConditionalGeneration"
    _model_type = "qwen2_5_vl"

    def _family(self, model: Any) -> Qwen2_5_VL:
        return Qwen2_5_VL(model, rope=self.options.rope, seconds_per_unit=self.options.seconds_per_unit)

    def _check_frames(self, upstream_args: dict[str, Any]) -> None:
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
        if str(given.get("fps")).lower() == "none":
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

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Upstream's loop, without its opening every video once more for a frame size that it does not use.

        Raises
        ------
        VideoError
            For a video that upstream would leave out in silence because of its name.
        """
        checked = [copy.copy(request) for request in requests]
        for request in checked:
            text, generation, doc_to_visual, *document = request.args
            request.arguments = (text, generation, _known_videos(doc_to_visual), *document)
        with replaced(upstream, decord=_NoProbe):
            return super().generate_until(checked)


def _known_videos(doc_to_visual: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(document: Any) -> Any:
        visuals = doc_to_visual(document)
        for visual in visuals or []:
            if isinstance(visual, str) and not visual.endswith(_UPSTREAM_SIMPLE_VIDEOS):
                raise VideoError(f"{visual}: with --force_simple only {', '.join(_UPSTREAM_SIMPLE_VIDEOS)} are read")
        return visuals

    return checked


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
