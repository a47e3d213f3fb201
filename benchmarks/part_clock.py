"""Where the time of a first token goes, measured at the package's own seams; nothing in the package knows of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn

from lmms_flexselect.families import grid_frames
from lmms_flexselect.families.internvl import processor as internvl_processor
from lmms_flexselect.families.llava_video import family as llava_video
from lmms_flexselect.families.llava_video import frames as llava_video_frames
from lmms_flexselect.method.selectors import ReferenceLayer
from lmms_flexselect.runtime.measure import now

PARTS = ("decode", "preprocess", "vision", "scoring", "selection", "prefill", "first token")

# What lies within another part and is one of its own.
_SEAMS: tuple[tuple[Any, str, str], ...] = (
    (llava_video_frames, "with_video", "decode"),
    (grid_frames, "with_video", "decode"),
    (internvl_processor, "with_video", "decode"),
    (llava_video, "pixel_values", "preprocess"),
    (ReferenceLayer, "scores", "scoring"),
)


class PartClock:
    """Adds up the seconds of each part; the GPU is waited for wherever one ends.

    A part within another one stops the outer one's clock, so that all parts together are the whole time.

    Parameters
    ----------
    clock
        Tells seconds.

    Attributes
    ----------
    seconds
        By part.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is run in it belongs to `name`."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def at_seams(self) -> Iterator[None]:
        """Tell decoding, normalising and scoring from what they are called by; undone on the way out."""
        with ExitStack() as undo:
            for owner, name, part in _SEAMS:
                undo.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), part)))
            yield

    @contextmanager
    def forward(self, module: nn.Module, name: str) -> Iterator[None]:
        """A module's forward passes belong to `name`."""
        hooks = [
            module.register_forward_pre_hook(lambda *_: self._begin(name)),
            module.register_forward_hook(lambda *_: self._end()),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*arguments, **kwargs)

        return timed

    def _begin(self, name: str) -> None:
        self._account()
        self._open.append(name)

    def _end(self) -> None:
        self._account()
        self._open.pop()

    def _account(self) -> None:
        time = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += time - self._since
        self._since = time
