"""A short video, and dumps of selections of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmms_flexselect.needle.benchmark import documents, video_path

FRAMES, ROWS, COLUMNS = 8, 2, 3


@pytest.fixture(scope="session")
def needle() -> dict[str, Any]:
    """A needle question about a video of 16 seconds."""
    return documents(units=16, videos=1)[0]


@pytest.fixture(scope="session")
def video(needle: dict[str, Any]) -> str:
    """Its file."""
    return str(video_path(needle))


@pytest.fixture
def dump(tmp_path: Path, video: str) -> Callable[..., Path]:
    """Writes a dump of 8 frames in two sets, of ascending scores of which every fourth was kept."""

    def write(
        folder: str = "dump", document: int = 0, marks: int = 0, family: str = "qwen2_5_vl", **changes: Any
    ) -> Path:
        a_frame = ROWS * COLUMNS + marks
        tokens = FRAMES * a_frame
        frame = np.repeat(np.arange(FRAMES), a_frame)
        arrays: dict[str, Any] = {
            "kept": np.arange(tokens) % 4 == 0,
            "scores": np.arange(tokens, dtype=np.float32),
            "frame": frame,
            "video": np.zeros(tokens, np.int16),
            "frame_set": frame % 2,
            "grids": np.array([[FRAMES, ROWS, COLUMNS]]),
            **changes,
        }
        of_video = {"path": video, "fps": 2.0, "frames_indices": list(range(0, 32, 2))}
        sample = {"task": "videomme", "doc_id": document, "question": "Who?", "family": family, "videos": [of_video]}
        path = tmp_path / folder / f"videomme__test__{document}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, sample=np.array(json.dumps(sample)), **arrays)
        return path

    return write
