"""The processor that upstream's Qwen loops talk to: upstream's own, with the reading of videos taken over.

An upstream loop renders its chat messages, lets qwen-vl-utils fetch what they point to, and calls the processor on
both. Here rendering also fetches, and takes the media out of the messages, so that upstream finds nothing left to
fetch and the processor call puts in what was read.
"""

from __future__ import annotations

import os
import time
from typing import Any

from loguru import logger
from qwen_vl_utils import extract_vision_info, fetch_image, fetch_video

from lmms_flexselect.errors import VideoError
from lmms_flexselect.models._records import PreparedRow, text_of
from lmms_flexselect.video import FrameSampling, SampledVideo, read_video


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
    """

    def __init__(self, processor: Any, sampling: FrameSampling, strict: bool, pass_metadata: bool = True) -> None:
        self._processor = processor
        self._sampling = sampling
        self._strict = strict
        self._pass_metadata = pass_metadata
        self._rows: list[PreparedRow] = []
        self._images: list[Any] = []
        self._videos: list[SampledVideo] = []

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
        for conversation in batch:
            self._rows.append(self._read(conversation))
        rendered = self._processor.apply_chat_template(conversations, **kwargs)
        for conversation in batch:
            _remove_media(conversation)
        return rendered

    def __call__(self, **kwargs: Any) -> Any:
        """Upstream's processor call, with the media read above."""
        images, videos = self._images, self._videos
        self._images, self._videos = [], []
        kwargs["images"] = images or None
        kwargs["videos"] = [video.frames for video in videos] or None
        if videos and self._pass_metadata:
            kwargs["video_metadata"] = [video.metadata for video in videos]
        return self._processor(**kwargs)

    def _read(self, conversation: list[dict[str, Any]]) -> PreparedRow:
        row, images, videos = PreparedRow(text_of(conversation[-1])), [], []
        start = time.perf_counter()
        try:
            for element in extract_vision_info(conversation):
                if "video" not in element:
                    images.append(fetch_image(element))
                    continue
                video = self._read_video(element)
                videos.append(video)
                row.videos.append({"path": str(element["video"]), **video.metadata})
        except VideoError as error:
            if self._strict:
                self._rows, self._images, self._videos = [], [], []
                raise
            logger.warning(f"answered empty: {error}")
            row.error, row.videos, images, videos = str(error), [], [], []
            _remove_media(conversation)
        self._images += images
        self._videos += videos
        row.seconds = time.perf_counter() - start
        return row

    def _read_video(self, element: dict[str, Any]) -> SampledVideo:
        if isinstance(element["video"], (str, os.PathLike)):
            return read_video(element, self._sampling)
        frames, metadata = fetch_video(element, return_video_metadata=True)  # a list of images: nothing to sample
        return SampledVideo(frames, {**metadata, "video_backend": "images"})


def _remove_media(conversation: list[dict[str, Any]]) -> None:
    media = {id(element) for element in extract_vision_info(conversation)}
    for message in conversation:
        if isinstance(message["content"], list):
            message["content"] = [element for element in message["content"] if id(element) not in media]
