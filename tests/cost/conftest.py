"""Folders with the configurations of published checkpoints, and nothing to load."""

from __future__ import annotations

import pytest

from lmms_flexselect.tools.doctor.checkpoints import published, write_stand_in


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By hub name."""
    root = tmp_path_factory.mktemp("published")
    return {name: str(write_stand_in(name, root)) for name in published()}
