"""What the lmms-eval classes share whose videos qwen-vl-utils reads, as grids of patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmms_flexselect.errors import OptionError, VideoError
from lmms_flexselect.families.grid_frames import FrameSampling, SampledVideo
from lmms_flexselect.families.grid_reader import GridReader
from lmms_flexselect.models.arguments import check_fps
from lmms_flexselect.models.grid_media import (
    PLACEHOLDERS,
    AddedPrompts,
    GridMedia,
    SeenVideo,
    element_key,
    read_key,
    repeated_placeholder,
)
from lmms_flexselect.models.plugin import FlexSelectPlugin
from lmms_flexselect.models.requests import Paths, check_text
from lmms_flexselect.models.selecting_model import BatchSelectingModel
from lmms_flexselect.options import whole_number
from lmms_flexselect.video.key import VideoKey


class GridSelectingModel(BatchSelectingModel):
    """Reads what a processor makes that cuts frames into a grid of patches."""

    _inputs = frozenset(
        {
            "input_ids",
            "attention_mask",
            "pixel_values",
            "pixel_values_videos",
            "image_grid_thw",
            "video_grid_thw",
            "second_per_grid_ts",
            "mm_token_type_ids",
            "video_keys",
            "pixels_omitted",
        }
    )
    _visual_token = "video_token_id"

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """No video in it, or the library's baseline asked for."""
        baseline = self._options.selector == "none" and getattr(self._options, "rope", None) == "library"
        keeps_timing = getattr(self._options, "seconds_per_unit", None) is None
        return inputs.get("video_grid_thw") is None or (baseline and keeps_timing)

    def _upstreams(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in inputs.items() if name not in ("video_keys", "pixels_omitted")}


_FRAMES_PER_UNIT = 2


class GridPlugin(FlexSelectPlugin):
    """See `FlexSelectPlugin`."""

    _placeholders = PLACEHOLDERS
    _overrides = frozenset({"processor"})
    fps: float | None
    max_num_frames: int
    max_pixels: int
    min_pixels: int
    processor: Any
    system_prompt: str | None
    reasoning_prompt: str | None

    def _selecting_model(self, *arguments: Any) -> GridSelectingModel:
        self._sampled = self._sampling()
        self._bare_processor = self.processor
        self.processor = GridMedia(
            self.processor,
            self._sampled,
            self.options.strict,
            self._pass_metadata(),
            self._frames,
            self._has_video,
            self._added(),
            self._spell,
            self.backend,
        )
        return GridSelectingModel(*arguments)

    def _spell(self, processor: Any, text: str, seen: Sequence[SeenVideo]) -> str:
        """How the processor writes videos into a prompt; see `inputs_without_pixels`."""
        return repeated_placeholder(processor, text, seen)

    def _bounds(self) -> dict[str, Any]:
        """Bounds of pixels, as upstream's loops write them into the message element of a video."""
        return {"max_pixels": self.max_pixels, "min_pixels": self.min_pixels}

    def _video_keys(self, paths: Paths) -> Iterable[VideoKey | None]:
        patch = int(self._bare_processor.video_processor.patch_size)
        return [element_key({"video": path, **self._bounds()}, self._sampled, patch, self.backend) for path in paths]

    def _read_video(self, key: VideoKey) -> SampledVideo:
        return read_key(key)

    def _needs_frames(self, key: VideoKey) -> bool:
        return not self.processor.knows(key)

    def _frame_count(self, frames: int, fps: float) -> int:
        return min(self._sampled.count(frames, fps), self._sampled.max_frames)

    def reader(self) -> GridReader:
        """See `FlexSelectPlugin.reader`."""
        sampling = FrameSampling(self.max_num_frames, self.fps or None)
        return GridReader(self.family, self._bare_processor, sampling, self._bounds())

    def _sampling(self) -> FrameSampling:
        raise NotImplementedError

    def _pass_metadata(self) -> bool:
        return True

    def _check_upstream(self, upstream_args: dict[str, Any]) -> None:
        frames = whole_number("max_num_frames", upstream_args["max_num_frames"], at_least=_FRAMES_PER_UNIT)
        check_fps(upstream_args["fps"], ", or none to spread max_num_frames over the video")
        lowest, highest = (whole_number(n, upstream_args[n], at_least=1) for n in ("min_pixels", "max_pixels"))
        if lowest > highest:
            raise OptionError(f"min_pixels={lowest} exceeds max_pixels={highest}; give both")
        self.options.check_frames(-(-frames // _FRAMES_PER_UNIT))
        for name in ("system_prompt", "reasoning_prompt"):
            check_text(upstream_args.get(name) or "", PLACEHOLDERS, name)

    def _added(self) -> AddedPrompts:
        """What is said beside a task's own messages, where upstream's loop does not do it."""
        return AddedPrompts()

    def _resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        if str(given.get("fps", "")).lower() == "none":
            given = {**given, "fps": None}
        return super()._resolve(given)


def check_video_names(visuals: list[Any], endings: tuple[str, ...]) -> list[Any]:
    """Raise `VideoError` for a video that upstream would leave out in silence because of its name."""
    for visual in visuals:
        if isinstance(visual, str) and not visual.endswith(endings):
            raise VideoError(f"{visual}: with --force_simple only {', '.join(endings)} are read")
    return visuals
