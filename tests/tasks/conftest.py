"""The paper's tasks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from lmms_eval.tasks import TaskManager

PAPER = Path(__file__).parents[2] / "tasks" / "paper"


@pytest.fixture(scope="session")
def utils() -> ModuleType:
    """The tasks' functions, loaded by path as lmms-eval does."""
    spec = importlib.util.spec_from_file_location("paper_utils", PAPER / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manager() -> TaskManager:
    return TaskManager(include_path=str(PAPER), include_defaults=False)
