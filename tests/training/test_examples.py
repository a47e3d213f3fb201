"""Scores that were kept are those of the video that is read."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace
from typing import Any

import torch

from lmms_flexselect.training.cache import ScoreCache
from lmms_flexselect.training.examples import VideoExamples


def test_kept_scores_are_of_the_content_of_a_video(tmp_path):
    video = tmp_path / "video.mp4"
    video.write_bytes(b"1234")
    sample: Any = SimpleNamespace(id="one", video=str(video), question="What?", answer="A")
    reader = SimpleNamespace(read=lambda *read: {})

    def example():
        cache = ScoreCache(tmp_path / "scores", {})
        examples = VideoExamples([sample], reader, "question", cache, tmp_path / "skipped.jsonl")
        return examples[0], cache

    first, cache = example()
    cache.put(first.name, torch.arange(3.0))
    assert torch.equal(example()[0].scores, torch.arange(3.0))
    # A copy elsewhere is the same video; another of the same name, size and time is not.
    shutil.copy2(video, tmp_path / "copy.mp4")
    sample.video = str(tmp_path / "copy.mp4")
    assert torch.equal(example()[0].scores, torch.arange(3.0))
    stat = os.stat(sample.video)
    (tmp_path / "copy.mp4").write_bytes(b"5678")
    os.utime(sample.video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert example()[0].scores is None
