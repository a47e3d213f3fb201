"""What the model classes do to the wrapped model."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationMixin

from tests.support.internvl_checkpoint import write_original


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """What any wrapped model's `generate` is called with, and what it returns."""
    calls = []

    def record(self, own=GenerationMixin.generate, **kwargs):
        output = own(self, **kwargs)
        calls.append((kwargs, output))
        return output

    monkeypatch.setattr(GenerationMixin, "generate", record)
    return calls


@pytest.fixture(scope="session")
def checkpoints(random_checkpoint, llava_checkpoint, tmp_path_factory):
    """Of each family that `CLASSES` has."""
    internvl = write_original(tmp_path_factory.mktemp("checkpoints") / "internvl", "qwen2")
    return {"qwen2_5_vl": random_checkpoint, "llava_vid": llava_checkpoint, "internvl_hf": internvl}
