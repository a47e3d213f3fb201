"""Frames of the videos that upstream's loops ask for, read ahead of them."""

from __future__ import annotations

from lmms_flexselect.errors import VideoError
from lmms_flexselect.video.key import VideoKey
from lmms_flexselect.video.prefetch import Prefetcher, ReaderDied, Value


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
