"""A video as the processor writes it into a prompt: every temporal unit behind its time in seconds.

The processor does so itself where it is given the frames; here it is done for videos whose pixels are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def unit_seconds(metadata: Mapping[str, Any], frames_per_unit: int = 2) -> list[float]:
    """When each temporal unit is shown: midway between its first and its last frame; a short one repeats its last."""
    indices = list(metadata["frames_indices"])
    indices += [indices[-1]] * (-len(indices) % frames_per_unit)
    times = [index / metadata["fps"] for index in indices]
    return [(times[i] + times[i + frames_per_unit - 1]) / 2 for i in range(0, len(times), frames_per_unit)]


def with_videos(processor: Any, text: str, videos: Sequence[tuple[Sequence[float], int]]) -> str:
    """A rendered chat with its video placeholders spelled out.

    Parameters
    ----------
    processor
        The checkpoint's.
    text
        With a placeholder for each video.
    videos
        Of each, the seconds of its temporal units, and the visual tokens of one.
    """
    start, end, token = processor.vision_start_token, processor.vision_end_token, processor.video_token
    spelled = iter(
        "".join(f"<{time:.1f} seconds>{start}{token * tokens}{end}" for time in seconds) for seconds, tokens in videos
    )
    place = re.escape(token)
    if not hasattr(processor, "replace_video_token"):  # early releases put a video in place of the marks around it, too
        place = f"{re.escape(start + token + end)}|{place}"
    return re.sub(place, lambda _: next(spelled), text)
