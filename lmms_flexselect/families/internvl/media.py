"""The processor that upstream's InternVL loop talks to: frames are read here, and spelled out in the prompt.

An upstream loop renders its chat messages and calls the processor on text, images and paths of videos.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.processor import FrameSegments, frame_pixels, small_frames
from lmms_flexselect.families.internvl.prompt import SYSTEM_MESSAGES, VIDEO_MARK, spell_out
from lmms_flexselect.models.reading import Frames, ReadingProcessor, RenderedPrompt, read_for, rendered
from lmms_flexselect.models.records import PreparedRow, text_of
from lmms_flexselect.video.key import VideoKey, video_key
from lmms_flexselect.video.reading import PYAV, Backend, VideoFile, with_video

_FRAMES_AT_ONCE = 32  # bounds memory, changes nothing


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


@dataclass
class SmallFrames:
    """Frames of one video.

    Attributes
    ----------
    frames
        ``(frames, size, size, 3)`` uint8, in the size of a tile.
    metadata
        Their numbers, and the video's rate and decoder.
    """

    frames: Tensor
    metadata: dict[str, Any]


def read_small(path: str, sampling: FrameSegments, processor: Any, backend: Backend = PYAV) -> SmallFrames:
    """Decode, sample and resize a video.

    Raises
    ------
    VideoError
        See `with_video`.
    """

    def work(video: VideoFile) -> SmallFrames:
        numbers = sampling.indices(video)
        frames = video.resized(numbers, lambda part: small_frames(processor, part))
        return SmallFrames(frames, {"fps": video.fps, "frames_indices": numbers, "video_backend": video.decoder})

    return with_video(path, work, backend)


class InternVLMedia(ReadingProcessor[dict[str, Any]]):
    """A `ReadingProcessor` that spells frames out in the prompt; of a video seen before it remembers the metadata.

    Parameters
    ----------
    processor
        The checkpoint's, or an `OriginalProcessor`.
    form
        How frames are told of.
    sampling
        Which frames of a video are read.
    strict
        See `ReadingProcessor`.
    dtype
        In which frames are kept until the model sees them.
    selector_tokenizer
        Of a FlexSelect-Lite selector, which reads the same prompt by it; None without one.
    frames
        Reads what has a `key`, perhaps ahead; None reads each in its turn.
    has_video
        See `ReadingProcessor`.
    backend
        What decodes.
    """

    def __init__(
        self,
        processor: Any,
        form: PromptForm,
        sampling: FrameSegments,
        strict: bool,
        dtype: torch.dtype,
        selector_tokenizer: Any = None,
        frames: Frames[SmallFrames] | None = None,
        has_video: Callable[[VideoKey], bool] = lambda key: False,
        backend: Backend = PYAV,
    ) -> None:
        super().__init__(processor, strict, frames or Frames(self.read, 0), has_video)
        self._form = form
        self._sampling = sampling
        self._dtype = dtype
        self._selector_tokenizer = selector_tokenizer
        self._backend = backend

    def key(self, path: str) -> VideoKey | None:
        """What a video is read by; None if there is no such file."""
        return video_key(path, self._sampling, self._backend)

    def read(self, key: VideoKey) -> SmallFrames:
        """The frames that a key stands for."""
        return read_small(key.path, self._sampling, self._processor, self._backend)

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> RenderedPrompt:
        """Render one conversation, the system message of the prompt form before it if it has none."""
        row = PreparedRow(text_of(conversation[-1]))
        system = SYSTEM_MESSAGES[self._form.system_message]
        if system is not None and conversation[0]["role"] != "system":
            conversation = [{"role": "system", "content": [{"type": "text", "text": system}]}, *conversation]
        return RenderedPrompt.of(self._processor.apply_chat_template(conversation, **kwargs), row)

    def __call__(
        self, text: str, images: list[Any] | None = None, videos: list[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """One prompt's inputs, as `InternVL.prompts` takes them, and `rows`: what was read for it."""
        row = rendered(text).row
        start = time.perf_counter()
        keys = [self.key(path) for path in videos or []]
        omitted = [self.knows(key) for key in keys]

        def read() -> list[Tensor]:
            return [self._read(row, path, key) for path, key in zip(videos or [], keys, strict=True)]

        pixels: list[Tensor] = read_for(row, self._strict, read, [])
        if row.error is not None:
            keys, omitted, images = [], [], None
            text = text.replace(VIDEO_MARK, "").replace(IMAGE_TOKEN, "")
        frames = [len(video["frames_indices"]) for video in row.videos]
        tiles: list[int] = []
        if images:
            options = {name: kwargs[name] for name in ("min_patches", "max_patches") if name in kwargs}
            made = self._processor.image_processor(images=images, crop_to_patches=True, return_tensors="pt", **options)
            tiles = torch.as_tensor(made["num_patches"]).tolist()
            pixels = _in_order(text, list(made["pixel_values"].split(tiles)), pixels)
        row.seconds = time.perf_counter() - start
        inputs: dict[str, Tensor] = {}
        for ids, prefix, tokenizer in (
            ("input_ids", "token_", self._processor.tokenizer),
            ("selector_ids", "selector_", self._selector_tokenizer),
        ):
            if tokenizer is not None:
                form = self._form
                tokens = spell_out(str(text), tiles, frames, tokenizer, form.tokens_per_tile, form.frame_labels)
                inputs |= {ids: tokens.ids, f"{prefix}video": tokens.video, f"{prefix}frame": tokens.frame}
        inputs = {name: values[None] for name, values in inputs.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if any(len(part) for part in pixels):
            inputs["pixel_values"] = torch.cat([part.to(self._dtype) for part in pixels])
        features = BatchFeature(inputs)
        if keys:
            features |= {"video_keys": keys, "pixels_omitted": omitted}
        features["rows"] = [row]
        return features

    def _read(self, row: PreparedRow, path: str, key: VideoKey | None) -> Tensor:
        """Pixels of a video; none of one whose visual tokens are kept."""
        if key is not None and self.knows(key):
            row.videos.append({"path": str(path), **self._seen[key]})
            return torch.empty(0)
        if key is None:
            video = read_small(str(path).removeprefix("file://"), self._sampling, self._processor, self._backend)
        else:
            video = self._frames.get(key)
            self.remember({key: video.metadata})
        row.videos.append({"path": str(path), **video.metadata})
        parts = video.frames.split(_FRAMES_AT_ONCE)
        return torch.cat([frame_pixels(self._processor, part).to(self._dtype) for part in parts])


def _in_order(text: str, images: list[Tensor], videos: list[Tensor]) -> list[Tensor]:
    """Pixels of images and videos in the order of their marks."""
    waiting = {IMAGE_TOKEN: iter(images), VIDEO_MARK: iter(videos)}
    marks = re.findall("|".join(map(re.escape, waiting)), text)
    return [next(waiting[mark]) for mark in marks]
