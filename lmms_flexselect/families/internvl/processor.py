"""An InternVL checkpoint's processor, or what stands for the one that an original lacks; and its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, GotOcr2ImageProcessor

from lmms_flexselect.errors import OptionError, first_line
from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.prompt import VIDEO_MARK
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer
from lmms_flexselect.families.pixels import normalised, resize_frames
from lmms_flexselect.video.reading import VideoFile, with_video

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class OriginalProcessor:
    """What upstream uses of a processor, for a checkpoint in the original InternVL2.5 layout.

    Parameters
    ----------
    tokenizer
        The checkpoint's.
    size
        Side of a tile in pixels.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer = tokenizer
        self.size = size
        self.image_processor = GotOcr2ImageProcessor(
            size={"height": size, "width": size},
            crop_to_patches=True,
            image_mean=list(_IMAGENET["mean"]),
            image_std=list(_IMAGENET["std"]),
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        """ChatML, with a mark on a line of its own for each image and video; open for the answer."""
        turns: list[tuple[str, str | None]] = [(m["role"], _marked(m["content"])) for m in conversation]
        system = turns.pop(0)[1] if turns[0][0] == "system" else None
        return chatml([*turns, ("assistant", None)], system)

    def frame_pixels(self, frames: Tensor) -> Tensor:
        """``(frames, height, width, 3)`` uint8 to ``(frames, 3, size, size)`` float32, one tile a frame."""
        return normalised(frames, self.size, **_IMAGENET)


def _marked(content: Any) -> str:
    if isinstance(content, str):
        return content
    marks = {"video": f"{VIDEO_MARK}\n", "image": f"{IMAGE_TOKEN}\n"}
    return "".join(marks.get(part["type"], part.get("text", "")) for part in content)


def load_processor(pretrained: str, original: bool, size: int, revision: str | None) -> Any:
    """The checkpoint's own processor, or an `OriginalProcessor`.

    Raises
    ------
    OptionError
        If its files cannot be read.
    """
    if original:
        return OriginalProcessor(load_tokenizer(pretrained, revision), size)
    try:
        return AutoProcessor.from_pretrained(pretrained, revision=revision)
    except Exception as error:
        raise OptionError(f"pretrained={pretrained}: its processor cannot be read ({first_line(error)})") from None


@dataclass(frozen=True)
class FrameSegments:
    """Which frames of a video are read: the middle one of each of so many segments.

    Attributes
    ----------
    frames
        How many; None for `fps`. A shorter video gives all it has.
    fps
        How many a second, if `frames` is None.
    whole_steps
        Segments start at whole frames, as upstream's `internvl2` has it; else as transformers has it.
    """

    frames: int | None
    fps: float | None = None
    whole_steps: bool = False

    def count(self, total: int, video_fps: float) -> int:
        """How many frames to read of a video of `total` frames."""
        wanted = self.frames if self.frames is not None else int(total / video_fps * (self.fps or 0))
        return max(1, min(wanted, total))

    def indices(self, video: VideoFile) -> list[int]:
        """The numbers of a video's frames, ascending."""
        return video.shown(self._indices(video.frames, self.count(video.frames, video.fps)))

    def _indices(self, total: int, count: int) -> list[int]:
        if count == total:  # upstream's whole steps would show some twice and leave the last out
            return list(range(total))
        if self.whole_steps:
            segment = (total - 1) / count
            return [int(segment / 2 + round(segment * index)) for index in range(count)]
        segment = total / count
        return [min(int(segment / 2 + segment * index), total - 1) for index in range(count)]


def video_pixels(processor: Any, path: str, segments: FrameSegments, dtype: torch.dtype) -> Tensor:
    """Frames of a video as the tower reads them: ``(frames, 3, size, size)``, decoded and resized some at a time.

    Raises
    ------
    VideoError
        See `with_video`.
    """

    def work(video: VideoFile) -> Tensor:
        return video.resized(segments.indices(video), lambda part: frame_pixels(processor, part).to(dtype))

    return with_video(path, work)


def small_frames(processor: Any, frames: Tensor) -> Tensor:
    """Frames ``(frames, height, width, 3)`` uint8 in the size of the tower's; `frame_pixels` changes that no more."""
    if isinstance(processor, OriginalProcessor):
        return resize_frames(frames, processor.size)
    unscaled = {"do_rescale": False, "do_normalize": False, "do_sample_frames": False}
    made = processor.video_processor(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt", **unscaled)
    return made["pixel_values_videos"][0].permute(0, 2, 3, 1)


def frame_pixels(processor: Any, frames: Tensor) -> Tensor:
    """``(frames, height, width, 3)`` uint8 to ``(frames, 3, size, size)``."""
    if isinstance(processor, OriginalProcessor):
        return processor.frame_pixels(frames)
    channels_first = frames.permute(0, 3, 1, 2)
    made = processor.video_processor(videos=[channels_first], do_sample_frames=False, return_tensors="pt")
    return made["pixel_values_videos"][0]
