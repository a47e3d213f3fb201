"""The processor that upstream's InternVL loop talks to: frames are read here, and spelled out in the prompt.

An upstream loop renders its chat messages and calls the processor on text, images and paths of videos. For checkpoints
in the original layout there is no processor to call; `OriginalProcessor` is what is needed of one.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, GotOcr2ImageProcessor

from lmms_flexselect.errors import OptionError, VideoError, first_line
from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl_config import IMAGE_TOKEN
from lmms_flexselect.families.internvl_prompt import SYSTEM_MESSAGES, VIDEO_MARK, spell_out
from lmms_flexselect.families.internvl_tokenizer import load_tokenizer
from lmms_flexselect.families.pixels import normalised
from lmms_flexselect.models._records import PreparedRow, text_of
from lmms_flexselect.video_file import VideoFile, open_video

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
        self._size = size
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
        return normalised(frames, self._size, **_IMAGENET)


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

    def indices(self, video: VideoFile) -> list[int]:
        """Of a video's frames, ascending."""
        total = video.frames
        wanted = self.frames if self.frames is not None else int(total / video.fps * (self.fps or 0))
        count = max(1, min(wanted, total))
        if count == total:  # upstream's whole steps would show some twice and leave the last out
            return list(range(total))
        if self.whole_steps:
            segment = (total - 1) / count
            return [int(segment / 2 + round(segment * index)) for index in range(count)]
        segment = total / count
        return [min(int(segment / 2 + segment * index), total - 1) for index in range(count)]


@dataclass
class PromptForm:
    """How frames are told of.

    Attributes
    ----------
    frame_labels
        ``"numbered"`` or ``"bare"`` (see `spell_out`).
    system_message
        A name in `SYSTEM_MESSAGES`.
    tokens_per_tile
        Visual tokens of a tile or frame.
    """

    frame_labels: str
    system_message: str
    tokens_per_tile: int


class InternVLMedia:
    """Wraps a processor; everything not defined here is the wrapped one's.

    Parameters
    ----------
    processor
        The checkpoint's, or an `OriginalProcessor`.
    form
        How frames are told of.
    sampling
        Which frames of a video are read.
    strict
        Whether an unreadable video raises `VideoError`; otherwise its row is marked and goes on without media.
    dtype
        In which frames are kept until the model sees them.
    """

    def __init__(
        self, processor: Any, form: PromptForm, sampling: FrameSegments, strict: bool, dtype: torch.dtype
    ) -> None:
        self._processor = processor
        self._form = form
        self._sampling = sampling
        self._strict = strict
        self._dtype = dtype
        self._row = PreparedRow()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._processor, name)

    def take_rows(self) -> list[PreparedRow]:
        """What was read for the prompt made last."""
        row, self._row = self._row, PreparedRow()
        return [row]

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        """Render one conversation, the system message of the prompt form before it if it has none."""
        self._row = PreparedRow(text_of(conversation[-1]))
        system = SYSTEM_MESSAGES[self._form.system_message]
        if system is not None and conversation[0]["role"] != "system":
            conversation = [{"role": "system", "content": [{"type": "text", "text": system}]}, *conversation]
        return self._processor.apply_chat_template(conversation, **kwargs)

    def __call__(
        self, images: list[Any] | None = None, videos: list[str] | None = None, text: str = "", **kwargs: Any
    ) -> BatchFeature:
        """One prompt's inputs, as `InternVL.prompts` takes them."""
        start = time.perf_counter()
        try:
            pixels = [self._read(path) for path in videos or []]
        except VideoError as error:
            if self._strict:
                raise
            logger.warning(f"answered empty: {error}")
            self._row.error, self._row.videos = str(error), []
            pixels, images, text = [], None, text.replace(VIDEO_MARK, "").replace(IMAGE_TOKEN, "")
        frames = [len(part) for part in pixels]
        tiles: list[int] = []
        if images:
            options = {name: kwargs[name] for name in ("min_patches", "max_patches") if name in kwargs}
            made = self._processor.image_processor(images=images, crop_to_patches=True, return_tensors="pt", **options)
            tiles = torch.as_tensor(made["num_patches"]).tolist()
            pixels = _in_order(text, list(made["pixel_values"].split(tiles)), pixels)
        self._row.seconds = time.perf_counter() - start
        tokens = spell_out(
            text, tiles, frames, self._processor.tokenizer, self._form.tokens_per_tile, self._form.frame_labels
        )
        inputs = {
            "input_ids": tokens.ids[None],
            "attention_mask": torch.ones_like(tokens.ids)[None],
            "token_video": tokens.video[None],
            "token_frame": tokens.frame[None],
        }
        if pixels:
            inputs["pixel_values"] = torch.cat([part.to(self._dtype) for part in pixels])
        return BatchFeature(inputs)

    def _read(self, path: str) -> Tensor:
        video = open_video(str(path).removeprefix("file://"))
        indices = self._sampling.indices(video)
        pixels = [self._pixels(part).to(self._dtype) for part in video.parts(indices)]
        metadata = {"path": str(path), "fps": video.fps, "frames_indices": indices, "video_backend": video.decoder}
        self._row.videos.append(metadata)
        return torch.cat(pixels)

    def _pixels(self, frames: Tensor) -> Tensor:
        if isinstance(self._processor, OriginalProcessor):
            return self._processor.frame_pixels(frames)
        channels_first = frames.permute(0, 3, 1, 2)
        made = self._processor.video_processor(videos=[channels_first], do_sample_frames=False, return_tensors="pt")
        return made["pixel_values_videos"][0]


def _in_order(text: str, images: list[Tensor], videos: list[Tensor]) -> list[Tensor]:
    """Pixels of images and videos in the order of their marks."""
    waiting = {IMAGE_TOKEN: iter(images), VIDEO_MARK: iter(videos)}
    marks = re.findall("|".join(map(re.escape, waiting)), text)
    return [next(waiting[mark]) for mark in marks]
