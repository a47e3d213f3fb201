"""A needle-in-a-haystack benchmark, and tiny trained VideoLLMs that solve it, with no hub and no GPU.

Videos of colour noise hide a few coloured glyphs; a question names a colour, the answer is the glyph's shape. The
questions of the second kind of model name a field of a colour chart (`lmms_flexselect.needle.naming`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_flexselect.families.spec import FamilySpec, families

TASK_PREFIX = "flexselect_needle_"
"""Of the names of lmms-eval's tasks; the length in temporal units follows."""

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CHART_CHECKPOINTS = Path(__file__).parent / "chart_checkpoints"

# What `pretrained` may be instead of a folder or a hub name; each holds a folder a family, by lmms-eval's name of it.
PRETRAINED = {"needle": CHECKPOINTS, "needle_chart": CHART_CHECKPOINTS}


def needle_families() -> dict[str, FamilySpec]:
    """The families that have a needle model, by name."""
    return {name: spec for name, spec in families().items() if spec.needle is not None}


def checkpoint(name: str, family: str, selector: bool = False) -> str:
    """Folder of the tiny model, or of its selector, that a name in `PRETRAINED` means; any other name as it is."""
    if name not in PRETRAINED or Path(name).exists():
        return name
    folder = PRETRAINED[name] / family
    folder = folder / "selector" if selector else folder
    return str(folder) if folder.is_dir() else name


def selector_path(given: Mapping[str, Any]) -> Any:
    """The selector that model arguments name: with ``selector=lite,pretrained=needle`` the needle model's own."""
    own = given.get("selector") == "lite" and given.get("pretrained") == "needle"
    return given.get("selector_path", "needle" if own else None)
