"""The processor that upstream's loops talk to where videos are grids of patches: upstream's, but for the reading.

An upstream loop renders its chat messages, lets qwen-vl-utils fetch what they point to, and calls the processor on
both. Here rendering also fetches, and takes the media out of the messages, so that upstream finds nothing left to
fetch and the processor call puts in what was read. Of a video whose visual tokens are kept the pixels are omitted.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from qwen_vl_utils import extract_vision_info, fetch_image, fetch_video
from transformers import BatchFeature

from lmms_flexselect.errors import VideoError, first_line
from lmms_flexselect.families.grid_frames import FrameSampling, SampledVideo, read_video_bytes
from lmms_flexselect.models.reading import Frames, ReadingProcessor, RenderedPrompt, read_for, rendered
from lmms_flexselect.models.records import PreparedRow, text_of
from lmms_flexselect.models.requests import check_text
from lmms_flexselect.video.key import VideoKey, video_key
from lmms_flexselect.video.reading import PYAV, Backend

_OF_TEXT = ("text", "padding", "padding_side", "return_tensors")
_READ_BY = ("min_pixels", "max_pixels", "total_pixels", "video_start", "video_end")


PLACEHOLDERS = ("<|video_pad|>", "<|image_pad|>")
"""What the processor puts visual tokens in place of."""


@dataclass(frozen=True)
class AddedPrompts:
    """What is said beside a task's own messages.

    Attributes
    ----------
    system
        In place of a system message; None for the task's own, or the chat template's.
    reasoning
        Behind the question; None for nothing.
    """

    system: str | None = None
    reasoning: str | None = None

    def add(self, conversation: list[dict[str, Any]]) -> None:
        """Write both into the messages."""
        if self.system is not None:
            before = [message for message in conversation if message["role"] == "system"]
            conversation[: len(before)] = [{"role": "system", "content": [{"type": "text", "text": self.system}]}]
        if self.reasoning is not None:
            last = conversation[-1]
            if isinstance(last["content"], str):
                last["content"] = last["content"].strip() + self.reasoning
            else:
                texts = [part for part in last["content"] if "text" in part]
                if not texts:
                    texts = [{"type": "text", "text": ""}]
                    last["content"].append(texts[0])
                text = texts[-1]
                text["text"] = text["text"].strip() + self.reasoning


def element_key(
    element: dict[str, Any], sampling: FrameSampling, patch: int, backend: Backend = PYAV
) -> VideoKey | None:
    """What a video of a chat message is read by; None if there is no such file."""
    rules = ((name, element[name]) for name in _READ_BY if name in element)
    return video_key(element["video"], sampling, patch, backend, *rules)


def read_key(key: VideoKey) -> SampledVideo:
    """The frames that `element_key` stands for, uint8."""
    sampling, patch, backend, *rules = key.reading
    return read_video_bytes({"video": key.path, **dict(rules)}, sampling, patch, backend)  # type: ignore[arg-type]


@dataclass
class SeenVideo:
    """What the processor made of a video, but for its pixels.

    Attributes
    ----------
    metadata
        What it was told of it.
    grid
        Time, height and width in patches.
    seconds_per_unit
        Between temporal units, as the processor has it; None if it does not say.
    """

    metadata: dict[str, Any]
    grid: list[int]
    seconds_per_unit: float | None


def seen_in(
    inputs: Any, keys: Sequence[VideoKey | None], metadata: Sequence[dict[str, Any]]
) -> dict[VideoKey, SeenVideo]:
    """The videos of a batch that the processor has made `inputs` of."""
    grids, seconds = inputs.get("video_grid_thw"), inputs.get("second_per_grid_ts")
    if grids is None:
        return {}
    return {
        key: SeenVideo(told, grids[n].tolist(), None if seconds is None else float(seconds[n]))
        for n, (key, told) in enumerate(zip(keys, metadata, strict=True))
        if key is not None
    }


Spell = Callable[[Any, str, Sequence[SeenVideo]], str]
"""Of the processor, a rendered prompt and the videos in it: the prompt with all their tokens spelled out."""


def repeated_placeholder(processor: Any, text: str, seen: Sequence[SeenVideo]) -> str:
    """A prompt in which each video is as many placeholders as it has visual tokens."""
    token, merge = processor.video_token, processor.video_processor.merge_size
    counts = iter([math.prod(video.grid) // merge**2 for video in seen])
    return re.sub(re.escape(token), lambda _: token * next(counts), text)


def inputs_without_pixels(
    processor: Any, seen: Sequence[SeenVideo], spell: Spell, text: Sequence[str], **kwargs: Any
) -> BatchFeature:
    """What the processor makes of texts about these videos, in their order, and that their pixels are left out.

    The processor itself refuses texts without their videos. `kwargs` are its own that say how texts are padded.
    """
    waiting = iter(seen)
    spelled = [spell(processor, one, [next(waiting) for _ in range(one.count(processor.video_token))]) for one in text]
    inputs = BatchFeature(dict(processor.tokenizer(spelled, **kwargs)))
    inputs["video_grid_thw"] = torch.tensor([video.grid for video in seen])
    if all(video.seconds_per_unit is not None for video in seen):
        inputs["second_per_grid_ts"] = [video.seconds_per_unit for video in seen]
    inputs["pixels_omitted"] = [True] * len(seen)
    return inputs


class GridMedia(ReadingProcessor[SeenVideo]):
    """A `ReadingProcessor` around a processor that cuts frames into a grid of patches.

    Parameters
    ----------
    processor
        Upstream's.
    sampling
        Which frames of a video are read.
    strict
        See `ReadingProcessor`.
    pass_metadata
        Whether the processor learns the frame rate. Upstream's simple class leaves it out.
    frames
        Reads what has an `element_key`, perhaps ahead; None reads each in its turn.
    has_video
        See `ReadingProcessor`; pixels are omitted where it holds for all videos of a batch.
    added
        What is said beside a task's own messages.
    spell
        How the processor writes a video into a prompt; see `inputs_without_pixels`.
    backend
        What decodes.
    """

    def __init__(
        self,
        processor: Any,
        sampling: FrameSampling,
        strict: bool,
        pass_metadata: bool = True,
        frames: Frames[SampledVideo] | None = None,
        has_video: Callable[[VideoKey], bool] = lambda key: False,
        added: AddedPrompts = AddedPrompts(),
        spell: Spell = repeated_placeholder,
        backend: Backend = PYAV,
    ) -> None:
        super().__init__(processor, strict, frames or Frames(read_key, 0), has_video)
        self._sampling = sampling
        self._pass_metadata = pass_metadata
        self._added = added
        self._spell = spell
        self._backend = backend
        self._patch = int(processor.video_processor.patch_size)

    def apply_chat_template(self, conversations: list[Any], **kwargs: Any) -> Any:
        """Read the media of one conversation or a batch of them, render, and empty the messages of their media."""
        batch = [conversations] if isinstance(conversations[0], dict) else conversations
        for conversation in batch:
            for message in conversation:
                check_text(text_of(message), PLACEHOLDERS, f"the message {text_of(message)!r}")
            self._added.add(conversation)
        elements = [element for conversation in batch for element in extract_vision_info(conversation)]
        all_known = all(self._knows_element(element) for element in elements)
        made = [self._read(conversation, all_known) for conversation in batch]
        texts = self._processor.apply_chat_template(conversations, **kwargs)
        for conversation in batch:
            _remove_media(conversation)
        if batch is not conversations:
            return RenderedPrompt.of(texts, *made[0])
        return [RenderedPrompt.of(text, *of_one) for text, of_one in zip(texts, made, strict=True)]

    def __call__(self, text: str | list[str], **kwargs: Any) -> Any:
        """Upstream's processor call, with the media that were read for the texts, and `rows`, a `PreparedRow` each."""
        prompts = [rendered(one) for one in ([text] if isinstance(text, str) else text)]
        media = [prompt.take() for prompt in prompts]
        images = [image for of_one in media for image in of_one.images]
        videos = [video for of_one in media for video in of_one.videos]
        keys = [key for of_one in media for key in of_one.keys]
        texts = [str(prompt) for prompt in prompts]
        kwargs |= {"text": texts[0] if isinstance(text, str) else texts, "images": images or None}
        seen = [video for video in videos if isinstance(video, SeenVideo)]
        if seen:
            of_text = {name: value for name, value in kwargs.items() if name in _OF_TEXT}
            inputs = inputs_without_pixels(self._processor, seen, self._spell, **{**of_text, "text": texts})
        else:
            kwargs["videos"] = [video.frames.float() for video in videos if isinstance(video, SampledVideo)] or None
            if videos and self._pass_metadata:
                kwargs["video_metadata"] = [video.metadata for video in videos]
            inputs = self._processor(**kwargs)
            self.remember(seen_in(inputs, keys, [video.metadata for video in videos]))
        if videos:
            inputs["video_keys"] = keys
        inputs["rows"] = [prompt.row for prompt in prompts]
        return inputs

    def _key(self, element: dict[str, Any]) -> VideoKey | None:
        return element_key(element, self._sampling, self._patch, self._backend)

    def _knows_element(self, element: dict[str, Any]) -> bool:
        video = element.get("video")
        return isinstance(video, (str, os.PathLike)) and self.knows(self._key(element))

    def _read(self, conversation: list[dict[str, Any]], all_known: bool) -> tuple[PreparedRow, _Media]:
        """What goes into the records of one conversation, and its media; without these if they cannot be read."""
        row = PreparedRow(text_of(conversation[-1]))

        def read() -> _Media:
            media = _Media()
            for element in extract_vision_info(conversation):
                if "video" not in element:
                    media.images.append(_image(element, self._patch))
                    continue
                video, key = self._read_video(element, all_known)
                media.videos.append(video)
                media.keys.append(key)
                row.videos.append({"path": str(element["video"]), **video.metadata})
            return media

        media = read_for(row, self._strict, read, _Media())
        if row.error is not None:
            _remove_media(conversation)
        return row, media

    def _read_video(self, element: dict[str, Any], known: bool) -> tuple[SampledVideo | SeenVideo, VideoKey | None]:
        if isinstance(element["video"], (str, os.PathLike)):
            key = self._key(element)
            if key is None:
                return read_video_bytes(element, self._sampling, self._patch, self._backend), None
            return self._seen[key] if known else self._frames.get(key), key
        # A list of images: nothing to sample.
        frames, metadata = fetch_video(element, image_patch_size=self._patch, return_video_metadata=True)
        return SampledVideo(frames, {**metadata, "video_backend": "images"}), None


@dataclass
class _Media:
    """What one prompt shows, images and videos each in their order."""

    images: list[Any] = field(default_factory=list)
    videos: list[SampledVideo | SeenVideo] = field(default_factory=list)
    keys: list[VideoKey | None] = field(default_factory=list)


def _image(element: dict[str, Any], patch: int) -> Any:
    """An image of a chat message, in the size that the model reads it in; raises `VideoError`."""
    try:
        return fetch_image(element, image_patch_size=patch)
    except (AssertionError, OSError, ValueError) as error:
        raise VideoError(f"an image cannot be read: {first_line(error)}") from None


def _remove_media(conversation: list[dict[str, Any]]) -> None:
    media = {id(element) for element in extract_vision_info(conversation)}
    for message in conversation:
        if isinstance(message["content"], list):
            message["content"] = [element for element in message["content"] if id(element) not in media]
