"""Outside of a family's own folder no module says a family's name, in code, comments or docstrings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lmms_flexselect

ROOT = Path(lmms_flexselect.__file__).parent
NAMES = re.compile(r"qwen|llava|internvl", re.IGNORECASE)

# What a library calls its own: transformers' class of a byte-level tokenizer, the package that reads videos.
OF_LIBRARIES = re.compile(r"Qwen2Tokenizer|qwen_vl_utils|qwen-vl-utils")

ALLOWED = {
    "__init__.py": "public names of the package",
}


def shared_modules() -> list[str]:
    """Of the package, those in no family's folder, relative to its root."""
    paths = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
    return [p.as_posix() for p in paths if not (p.parts[0] == "families" and len(p.parts) > 2)]


def named(text: str) -> list[str]:
    """The lines of a module that name a family."""
    lines = (OF_LIBRARIES.sub("", line) for line in text.splitlines())
    return [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if NAMES.search(line)]


@pytest.mark.parametrize("module", [m for m in shared_modules() if m not in ALLOWED])
def test_shared_code_names_no_family(module):
    assert not NAMES.search(module)
    assert named((ROOT / module).read_text()) == []


def test_an_exception_that_is_needed_no_more_goes():
    there = {m for m in shared_modules() if NAMES.search(m) or named((ROOT / m).read_text())}
    assert [name for name, why in ALLOWED.items() if why != "moves" and name not in there] == []


def test_names_are_found_however_they_are_spelled():
    text = 'if family == "qwen2_5_vl":\n    # InternVL\nfrom transformers import Qwen2Tokenizer\nx = Qwen2Model\nLLaVA'
    assert [line.split(":")[0] for line in named(text)] == ["1", "2", "4", "5"]
