"""What the model classes do to the wrapped model."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationMixin


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
