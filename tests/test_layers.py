"""Who may import whom, read from the source; imports for types alone and within functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmms_flexselect
from lmms_flexselect.families.spec import FamilySpec, families

ROOT = Path(lmms_flexselect.__file__).parent
NAME = "lmms_flexselect"

# A module may import what stands in its own line or in one before it. The longest name that a module begins with says
# where it stands.
ORDER = (
    "errors",
    "runtime",
    "saving",
    "method",
    "dump",
    "options",
    "loading",
    "recall_file",
    "families.spec",
    "cost",
    "checkpoints",
    "presets",
    "lite",
    "video",
    "families",
    "training",
    "needle",
    "models",
    "manifests",
    "tools",
    "cli",
)


def layer(module: str) -> str:
    """Of `ORDER`, the entry that a module belongs to, by its name within the package."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in ORDER), "")


def read_imports(source: str, module: str, package: bool, known: set[str]) -> set[str]:
    """The modules of this package, by their names within it, that a module's source imports anywhere; "" for itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = [NAME, *module.split(".")]
            above = above[: len(above) + (1 if package else 0) - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole.removeprefix(f"{NAME}.") in known else base)
    return {name.removeprefix(NAME).removeprefix(".") for name in found if name.split(".")[0] == NAME}


def package_imports() -> dict[str, set[str]]:
    """What each module of the package imports of it."""
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = set(files)
    return {m: read_imports(p.read_text(), m, p.name == "__init__.py", known) for m, p in files.items() if m}


IMPORTS = package_imports()


def in_family(module: str) -> bool:
    return module.startswith("families.") and module.count(".") >= 2


def reached(module: str) -> Iterator[str]:
    """A module and all that it imports, of this package, over any number of steps."""
    waiting, seen = [module], {""}
    while waiting:
        if (next_one := waiting.pop()) in seen:
            continue
        seen.add(next_one)
        yield next_one
        waiting += IMPORTS.get(next_one, ())


def side_of(module: str) -> str:
    """A module's layer; a family's folder also holds its lmms-eval classes and its needle model's training."""
    if not in_family(module):
        return layer(module)
    used = {layer(name) for name in reached(module)}
    return next((name for name in ("models", "needle") if name in used), "families")


def test_every_module_has_its_place():
    assert [module for module in IMPORTS if not layer(module)] == []


@pytest.mark.parametrize("module", IMPORTS)
def test_nothing_imports_what_stands_above_it(module):
    allowed = ORDER[: ORDER.index(side_of(module)) + 1]
    above = sorted(name for name in IMPORTS[module] if name and side_of(name) not in allowed)
    assert not above, f"{module} ({side_of(module)}) imports {', '.join(above)}"


def test_shared_code_imports_no_familys_folder():
    found = [(module, name) for module in IMPORTS if not in_family(module) for name in IMPORTS[module]]
    assert [each for each in found if in_family(each[1])] == []


def test_families_import_no_other_family():
    folder = {module: module.split(".")[1] for module in IMPORTS if in_family(module)}
    pairs = [(module, name) for module in folder for name in IMPORTS[module] if in_family(name)]
    assert [pair for pair in pairs if folder[pair[0]] != folder[pair[1]]] == []


@pytest.mark.parametrize("spec", families().values(), ids=lambda spec: spec.name)
def test_what_reads_a_family_needs_neither_lmms_eval_nor_its_needle_model(spec: FamilySpec):
    paths = [spec.options, spec.reader, spec.shape, spec.selector_network]
    modules = [path.partition(":")[0].removeprefix(f"{NAME}.") for path in paths if path]
    assert {name: side_of(name) for name in modules if side_of(name) in ("models", "needle")} == {}


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a ring; empty if there are none."""
    left = {name: set(targets) - {name} for name, targets in imports.items()}
    while ready := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ready:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("depth", [1, 2])
def test_packages_import_each_other_in_no_ring(depth):
    """Depth 1: the packages and single modules themselves; 2: the tools and the families among themselves."""
    between: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        if depth == 1 and side_of(module) == layer(module):
            between.setdefault(layer(module), set()).update(side_of(name) for name in names if name)
        elif depth == 2 and layer(module) in ("tools", "families"):
            parts = {".".join(name.split(".")[:2]) for name in names}
            between.setdefault(".".join(module.split(".")[:2]), set()).update(parts)
    assert between
    assert cycle(between) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import lmms_flexselect.cli", {"cli"}),
        ("def f():\n    from lmms_flexselect.tools import demo, NAME", {"tools.demo", "tools"}),
        ("if TYPE_CHECKING:\n    from lmms_flexselect.video import read_video", {"video"}),
        ("from . import beside\nfrom .beside import f\nfrom ..tools.demo import run", {"method.beside", "tools.demo"}),
        ("import lmms_flexselecting, torch\nfrom lmms_eval import utils", set()),
        ("from lmms_flexselect import __version__", {""}),
    ],
)
def test_all_ways_to_import_are_seen(source, found):
    known = {"cli", "tools", "tools.demo", "video", "method", "method.beside"}
    assert read_imports(source, "method.scores", False, known) == found


def test_a_ring_is_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]
    assert cycle({"a": {"b", "a"}, "b": set()}) == []
