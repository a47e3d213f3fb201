"""The needle benchmark: one question per needle, on video files that are written when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.naming import Naming, by_colour
from lmms_flexselect.needle.videos import NeedleVideo, write_video
from lmms_flexselect.runtime.hf_home import hf_home

LENGTHS = (16, 64, 128, 256, 512)
CHART_LENGTHS = (16, 64, 256)
VIDEOS_PER_LENGTH = 34
NEEDLES_PER_VIDEO = 6

# Part of every file name: raise it whenever videos.py draws, paints or encodes differently, or old files stay in use.
GENERATOR_VERSION = 1


def question(name: str) -> str:
    """The question about the needle whose colour is called so, in training and in evaluation."""
    return f"What shape is the {name} glyph?"


def documents(
    units: int, videos: int = VIDEOS_PER_LENGTH, seed: int = 0, naming: Naming = by_colour
) -> list[dict[str, Any]]:
    """Rows of the benchmark: one per needle, so six questions on each of `videos` videos of `units` temporal units.

    The videos are the same however their colours are called.
    """
    rows: list[dict[str, Any]] = []
    for index in range(videos):
        video_seed = int(np.random.SeedSequence([seed, units, index]).generate_state(1)[0])
        video = NeedleVideo.draw(video_seed, units, NEEDLES_PER_VIDEO)
        for number, needle in enumerate(video.needles):
            name = naming(needle.colour, np.random.default_rng([video_seed, number]))
            rows.append(
                {
                    "id": f"{units}-{index:02d}-{number}",
                    "video": f"needle_v{GENERATOR_VERSION}_{units:03d}_{video_seed:010d}.mp4",
                    "seed": video_seed,
                    "units": units,
                    "unit": needle.unit,
                    "quadrant": needle.quadrant,
                    "colour": needle.colour,
                    "question": question(name),
                    "shape": needle.shape,
                }
            )
    return rows


def cache_folder() -> Path:
    """The folder of the benchmark's video files: `$HF_HOME/flexselect_needle`."""
    return hf_home() / "flexselect_needle"


def video_path(document: Mapping[str, Any]) -> Path:
    """The video file of one row; written on first use."""
    path = cache_folder() / document["video"]
    if not path.exists():
        video = NeedleVideo.draw(document["seed"], document["units"], NEEDLES_PER_VIDEO)
        write_video(path, video.frames())
    return path


def answers_shape(answer: str, shape: str) -> bool:
    """Whether the first word of an answer is the shape, whatever its case and the punctuation around it."""
    words = answer.split()
    return bool(words) and words[0].strip(".,:;!?\"'").lower() == shape


def example(family: str) -> tuple[str, str, str]:
    """A family's needle checkpoint, a video of 128 frames and a question about it, for trying things out."""
    row = documents(units=64, videos=1)[0]
    return str(CHECKPOINTS / family), str(video_path(row)), row["question"]
