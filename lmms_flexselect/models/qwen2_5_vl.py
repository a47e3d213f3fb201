"""``--model qwen2_5_vl_flexselect``: upstream's Qwen2.5-VL wrappers with the visual tokens selected."""

from __future__ import annotations

from typing import Any

import numpy as np
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as UpstreamChat
from lmms_eval.models.simple import qwen2_5_vl as upstream
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as UpstreamSimple

from lmms_flexselect.families.qwen2_5_vl import Qwen2_5_VL
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.models._loading import StrictLoader
from lmms_flexselect.models._qwen_plugin import QwenPlugin, check_video_names
from lmms_flexselect.models._upstream import with_visuals
from lmms_flexselect.video import FrameSampling

_UPSTREAM_SIMPLE_FPS = 2.0
_UPSTREAM_SIMPLE_VIDEOS = (".mp4", ".avi", ".mov")


class _Qwen2_5_VLPlugin(QwenPlugin):
    upstream_name = _family_name = "qwen2_5_vl"
    _upstream_module = upstream

    def _family(self, model: Any) -> Qwen2_5_VL:
        return Qwen2_5_VL(model, rope=self.options.rope, seconds_per_unit=self.options.seconds_per_unit)

    def _config(self, pretrained: str) -> Any:
        return checkpoint_config(pretrained, self.upstream_name)

    def _loaders(self) -> dict[str, Any]:
        name = "Qwen2_5_VLForConditionalGeneration"
        return {name: StrictLoader(getattr(upstream, name), self.options.dtype)}


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
    return check_video_names(visuals, _UPSTREAM_SIMPLE_VIDEOS)


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
