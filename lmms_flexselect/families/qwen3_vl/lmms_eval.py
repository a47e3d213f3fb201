"""``--model qwen3_vl_flexselect``: upstream's Qwen3-VL wrappers with the visual tokens selected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import transformers
from lmms_eval.models.chat.qwen3_vl import Qwen3_VL as UpstreamChat
from lmms_eval.models.simple import qwen3_vl as upstream
from lmms_eval.models.simple.qwen3_vl import Qwen3_VL as UpstreamSimple

from lmms_flexselect.families.grid_frames import FrameSampling
from lmms_flexselect.families.qwen3_vl.family import Qwen3_VL
from lmms_flexselect.families.qwen3_vl.options import Options
from lmms_flexselect.families.qwen3_vl.timestamps import unit_seconds, with_videos
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.models.grid_media import SeenVideo
from lmms_flexselect.models.grid_plugin import GridPlugin, check_video_names
from lmms_flexselect.models.upstream import StrictLoader, with_visuals

CHECKPOINTS = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
"""Classes of transformers by the checkpoint's ``model_type``."""

_UPSTREAM_FPS = 2.0  # qwen-vl-utils', where upstream bounds a video by `total_pixels` and says no rate


class _Qwen3VLPlugin(GridPlugin):
    options: Options
    total_pixels: int | None
    tokenizer: Any
    upstream_name = _family_name = "qwen3_vl"
    _upstream_module = upstream

    def _family(self, model: Any) -> Qwen3_VL:
        return Qwen3_VL(model, self.tokenizer, rope=self.options.rope)

    def _checkpoint_config(self, pretrained: str) -> Any:
        return checkpoint_config(pretrained, *CHECKPOINTS)

    def _loaders(self) -> dict[str, Any]:
        def model_class(pretrained: str, is_moe: bool) -> tuple[StrictLoader, str]:
            """By the checkpoint's configuration; upstream goes by its name."""
            name = CHECKPOINTS[self._checkpoint_config(pretrained).model_type]
            return StrictLoader(getattr(transformers, name), self.options.dtype), "torch_dtype"

        return {"_resolve_model_class": model_class}

    def _spell(self, processor: Any, text: str, seen: Sequence[SeenVideo]) -> str:
        merge = processor.video_processor.merge_size
        videos = [(unit_seconds(video.metadata), video.grid[1] * video.grid[2] // merge**2) for video in seen]
        return with_videos(processor, text, videos)

    def _bounds(self) -> dict[str, Any]:
        if self.total_pixels is None:
            return super()._bounds()
        return {"min_pixels": self.min_pixels, "total_pixels": self.total_pixels}

    def _sampling(self) -> FrameSampling:
        fps = self.fps or (None if self.total_pixels is None else _UPSTREAM_FPS)
        return FrameSampling(self.max_num_frames, fps)

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        if upstream_args["total_pixels"] is not None:  # takes the place of max_pixels
            upstream_args = {**upstream_args, "max_pixels": upstream_args["total_pixels"]}
        super()._check_upstream(upstream_args)


class Qwen3VLFlexSelect(_Qwen3VLPlugin, UpstreamChat):
    """Chat class. Frames: at most `max_num_frames`, and at most `fps` a second where that is given."""


class _NoProbe:
    """In place of decord where upstream counts frames for a bound that is not used here."""

    class VideoReader:
        def __init__(self, path: str) -> None:
            self.path = path

        def __len__(self) -> int:
            return 2


class _InTurn:
    """In place of an executor: what is submitted runs when its result is asked for."""

    def __init__(self, max_workers: int) -> None:
        """Takes what an executor takes."""

    def __enter__(self) -> _InTurn:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> _Later:
        """Something with a ``result()``."""
        return _Later(function, arguments)


class _Later:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments

    def result(self) -> Any:
        """Of the call, made now."""
        return self._function(*self._arguments)


class Qwen3VLFlexSelectSimple(_Qwen3VLPlugin, UpstreamSimple):
    """Simple class (``--force_simple``)."""

    # Upstream opens every video once more to count its frames, and prepares a batch while another is answered; videos
    # are read ahead here.
    _upstream_replacements: ClassVar[Mapping[str, Any]] = {"decord": _NoProbe, "ThreadPoolExecutor": _InTurn}

    def _prepared(self, requests: list[Any]) -> list[Any]:
        return with_visuals(requests, _known_videos)


def _known_videos(visuals: list[Any], question: str) -> list[Any]:
    check_video_names([v.lower() if isinstance(v, str) else v for v in visuals], upstream._VIDEO_EXTENSIONS)
    return visuals
