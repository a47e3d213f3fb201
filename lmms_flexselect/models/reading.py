"""Reading what a prompt shows: ahead of its turn, and with one rule for a video that cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from loguru import logger

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.models.records import PreparedRow
from lmms_flexselect.video.key import VideoKey
from lmms_flexselect.video.prefetch import Prefetcher, ReaderDied, Value

Seen = TypeVar("Seen")
Media = TypeVar("Media")


class Frames(Prefetcher[VideoKey, Value]):
    """A `Prefetcher` of videos: what ends a reader's thread is the fault of its video."""

    def get(self, key: VideoKey) -> Value:
        """See `Prefetcher.get`.

        Raises
        ------
        VideoError
            If the video cannot be read, or its decoder died over it.
        """
        try:
            return super().get(key)
        except ReaderDied as error:
            raise VideoError(f"{key.path}: {error}") from error


def read_for(row: PreparedRow, strict: bool, read: Callable[[], Media], nothing: Media) -> Media:
    """What a prompt shows, read and timed; where a video cannot be read, `nothing`, and the row says why.

    Raises
    ------
    VideoError
        With `strict`, if a video cannot be read.
    """
    start = time.perf_counter()
    try:
        return read()
    except VideoError as error:
        if strict:
            raise
        logger.warning(f"answered empty: {error}")
        row.error, row.videos = str(error), []
        return nothing
    finally:
        row.seconds = time.perf_counter() - start


class RenderedPrompt(str):
    """A rendered prompt, on its way through upstream's loop to the processor, with what belongs to it.

    Attributes
    ----------
    row
        What goes into the records.
    media
        What was read for it.
    """

    row: PreparedRow
    media: Any

    @classmethod
    def of(cls, text: str, row: PreparedRow, media: Any = None) -> RenderedPrompt:
        """The text with its row and media."""
        prompt = cls(text)
        prompt.row, prompt.media = row, media
        return prompt

    def take(self) -> Any:
        """The media, which are not held any longer.

        Raises
        ------
        FlexSelectError
            If they were taken before.
        """
        if self.media is None:
            raise FlexSelectError("lmms-eval's loop uses a rendered prompt twice, which this package cannot follow")
        media, self.media = self.media, None
        return media


def rendered(text: str) -> RenderedPrompt:
    """A text that upstream's loop hands to the processor, as the prompt that we rendered.

    Raises
    ------
    FlexSelectError
        If it is another text, so that nobody knows which document it is of.
    """
    if not isinstance(text, RenderedPrompt):
        raise FlexSelectError("lmms-eval's loop changes a rendered prompt, which this package cannot follow")
    return text


class ReadingProcessor(Generic[Seen]):
    """Wraps a checkpoint's processor and reads videos for it; everything not defined is the wrapped one's.

    Parameters
    ----------
    processor
        The wrapped one.
    strict
        Whether an unreadable video raises `VideoError`; otherwise its row is marked and goes on without media.
    frames
        Reads videos by their keys, perhaps ahead.
    has_video
        Whether the family keeps a video's visual tokens; the pixels of such a video are omitted.
    """

    def __init__(
        self, processor: Any, strict: bool, frames: Frames[Any], has_video: Callable[[VideoKey], bool]
    ) -> None:
        self._processor = processor
        self._strict = strict
        self._frames = frames
        self._has_video = has_video
        self._seen: dict[VideoKey, Seen] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._processor, name)

    def knows(self, key: VideoKey | None) -> bool:
        """Whether questions about a video need its frames no more."""
        return key is not None and key in self._seen and self._has_video(key)

    def remember(self, videos: dict[VideoKey, Seen]) -> None:
        """Keep what further questions about these videos need, and forget those that the family has let go of."""
        self._seen = {key: seen for key, seen in self._seen.items() if self._has_video(key)} | videos
