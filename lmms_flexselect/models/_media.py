"""The processor that upstream's Qwen loops talk to: upstream's own, with the reading of videos taken over.

An upstream loop renders its chat messages, lets qwen-vl-utils fetch what they point to, and calls the processor on
both. Here rendering also fetches, and takes the media out of the messages, so that upstream finds nothing left to
fetch and the processor call puts in what was read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from loguru import logger
from qwen_vl_utils import extract_vision_info, fetch_image, fetch_video

from lmms_flexselect.errors import VideoError
from lmms_flexselect.families.qwen2_5_vl_frames import FrameSampling, SampledVideo, read_video_bytes
from lmms_flexselect.models._frames import Frames
from lmms_flexselect.models._records import PreparedRow, text_of
from lmms_flexselect.models._seen_videos import SeenVideo, inputs_without_pixels, seen_in
from lmms_flexselect.video.reading import PYAV, Backend
from lmms_flexselect.video_key import VideoKey, video_key

_OF_MEDIA = ("images", "videos", "video_metadata")
_READ_BY = ("min_pixels", "max_pixels", "video_start", "video_end")


def element_key(element: dict[str, Any], sampling: FrameSampling, backend: Backend = PYAV) -> VideoKey | None:
    """What a video of a chat message is read by; None if there is no such file."""
    return video_key(
        element["video"], sampling, backend, *((name, element[name]) for name in _READ_BY if name in element)
    )


def read_key(key: VideoKey) -> SampledVideo:
    """The frames that `element_key` stands for, uint8."""
    sampling, backend, *rules = key.reading
    return read_video_bytes({"video": key.path, **dict(rules)}, sampling, backend=backend)  # type: ignore[arg-type]


class MediaProcessor:
    """Wraps a Qwen processor; everything not defined here is the wrapped one's.

    Parameters
    ----------
    processor
        Upstream's.
    sampling
        Which frames of a video are read.
    strict
        Whether an unreadable video raises `VideoError`; otherwise its row is marked and goes on without media.
    pass_metadata
        Whether the processor learns the frame rate. Upstream's simple class leaves it out.
    frames
        Reads what has an `element_key`, perhaps ahead; None reads each in its turn.
    has_video
        Whether the family keeps a video's visual tokens. Where it does so for all videos of a batch that were seen
        before, their pixels are left out.
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
        backend: Backend = PYAV,
    ) -> None:
        self._processor = processor
        self._sampling = sampling
        self._strict = strict
        self._pass_metadata = pass_metadata
        self._frames = frames or Frames(read_key, 0)
        self._has_video = has_video
        self._backend = backend
        self._seen: dict[VideoKey, SeenVideo] = {}
        self._rows: list[PreparedRow] = []
        self._images: list[Any] = []
        self._videos: list[SampledVideo | SeenVideo] = []
        self._leave_out = False
        self._keys: list[VideoKey | None] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._processor, name)

    def take_rows(self) -> list[PreparedRow]:
        """What was read since the last call, one entry a prompt."""
        rows, self._rows = self._rows, []
        return rows

    def apply_chat_template(self, conversations: list[Any], **kwargs: Any) -> Any:
        """Read the media of one conversation or a batch of them, render, and empty the messages of their media."""
        batch = [conversations] if isinstance(conversations[0], dict) else conversations
        elements = [element for conversation in batch for element in extract_vision_info(conversation)]
        self._leave_out = all(self._knows_element(element) for element in elements)
        for conversation in batch:
            self._rows.append(self._read(conversation))
        rendered = self._processor.apply_chat_template(conversations, **kwargs)
        for conversation in batch:
            _remove_media(conversation)
        return rendered

    def __call__(self, **kwargs: Any) -> Any:
        """Upstream's processor call, with the media read above."""
        images, videos, keys = self._images, self._videos, self._keys
        self._images, self._videos, self._keys = [], [], []
        kwargs["images"] = images or None
        seen = [video for video in videos if isinstance(video, SeenVideo)]
        if seen:
            of_text = {name: value for name, value in kwargs.items() if name not in _OF_MEDIA}
            inputs = inputs_without_pixels(self._processor, seen, **of_text)
        else:
            kwargs["videos"] = [video.frames.float() for video in videos if isinstance(video, SampledVideo)] or None
            if videos and self._pass_metadata:
                kwargs["video_metadata"] = [video.metadata for video in videos]
            inputs = self._processor(**kwargs)
            self._seen = {key: video for key, video in self._seen.items() if self._has_video(key)}
            self._seen |= seen_in(inputs, keys, [video.metadata for video in videos])
        if videos:
            inputs["video_keys"] = keys
        return inputs

    def knows(self, key: VideoKey | None) -> bool:
        """Whether questions about a video need its frames no more."""
        return key is not None and key in self._seen and self._has_video(key)

    def _knows_element(self, element: dict[str, Any]) -> bool:
        video = element.get("video")
        return isinstance(video, (str, os.PathLike)) and self.knows(element_key(element, self._sampling, self._backend))

    def _read(self, conversation: list[dict[str, Any]]) -> PreparedRow:
        row, images, keys = PreparedRow(text_of(conversation[-1])), [], []
        videos: list[SampledVideo | SeenVideo] = []
        start = time.perf_counter()
        try:
            for element in extract_vision_info(conversation):
                if "video" not in element:
                    images.append(fetch_image(element))
                    continue
                video, key = self._read_video(element)
                videos.append(video)
                keys.append(key)
                row.videos.append({"path": str(element["video"]), **video.metadata})
        except VideoError as error:
            if self._strict:
                self._rows, self._images, self._videos, self._keys = [], [], [], []
                raise
            logger.warning(f"answered empty: {error}")
            row.error, row.videos, images, videos, keys = str(error), [], [], [], []
            _remove_media(conversation)
        self._images += images
        self._videos += videos
        self._keys += keys
        row.seconds = time.perf_counter() - start
        return row

    def _read_video(self, element: dict[str, Any]) -> tuple[SampledVideo | SeenVideo, VideoKey | None]:
        if isinstance(element["video"], (str, os.PathLike)):
            key = element_key(element, self._sampling, self._backend)
            if key is None:
                return read_video_bytes(element, self._sampling, backend=self._backend), None
            return self._seen[key] if self._leave_out else self._frames.get(key), key
        frames, metadata = fetch_video(element, return_video_metadata=True)  # a list of images: nothing to sample
        return SampledVideo(frames, {**metadata, "video_backend": "images"}), None


def _remove_media(conversation: list[dict[str, Any]]) -> None:
    media = {id(element) for element in extract_vision_info(conversation)}
    for message in conversation:
        if isinstance(message["content"], list):
            message["content"] = [element for element in message["content"] if id(element) not in media]
