"""Every package that is imported is declared; where an optional one is missing, that is said before anything is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lmms_flexselect import cli
from lmms_flexselect.tools import demo
from lmms_flexselect.tools.analysis import pca, recall_command
from lmms_flexselect.tools.scores import plot
from lmms_flexselect.tools.show import command as show

ROOT = Path(__file__).parents[1]
FROM_LMMS_EVAL = {"scikit-learn"}
# transformers reads InternLM2's tokenizer by the first; the second is decord for macOS.
NOT_IMPORTED = {"sentencepiece", "eva-decord"}


def declared() -> set[str]:
    """The names that pyproject.toml requires, for pictures too."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported(folder: Path) -> Iterator[tuple[str, str]]:
    """The top-level modules, and where: of all Python files below a folder, whether at the top or in a function."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            yield from ((name.split(".")[0], str(file.relative_to(ROOT))) for name in names)


def third_party() -> dict[str, str]:
    """The distributions that the package's and the tasks' files import, each with one of the files."""
    modules = {name: file for folder in ("lmms_flexselect", "tasks") for name, file in imported(ROOT / folder)}
    own = {*sys.stdlib_module_names, "lmms_flexselect"}
    owners = packages_distributions()
    missing = {name: file for name, file in modules.items() if name not in own and name not in owners}
    assert not missing, f"imported, and not installed: {missing}"
    return {canonicalize_name(owners[name][0]): file for name, file in modules.items() if name not in own}


def test_what_is_imported_is_declared():
    needed = third_party()
    assert {"torch", "pillow", "tqdm", "datasets"} <= needed.keys()  # the scan finds something
    undeclared = {name: file for name, file in needed.items() if name not in declared() | FROM_LMMS_EVAL}
    assert not undeclared, f"pyproject.toml declares none of {undeclared}"


@pytest.mark.parametrize("name", FROM_LMMS_EVAL)
def test_lmms_eval_brings_what_is_left_to_it(name):
    found = map(Requirement, requires("lmms-eval") or [])
    assert name in {canonicalize_name(each.name) for each in found if each.marker is None}


def test_nothing_is_declared_that_is_not_imported():
    assert declared() - third_party().keys() == NOT_IMPORTED


class Measured(AssertionError):
    """Something was run."""


@pytest.fixture
def without_matplotlib(monkeypatch):
    """As where it is not installed; nothing that takes time may be called."""

    def run(*_, **__):
        raise Measured

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module, name in (
        (demo, "run"),
        (recall_command, "load"),
        (recall_command, "read_result"),
        (pca, "load"),
        (plot, "curves"),
        (show, "_of_question"),
        (show, "_of_dump"),
    ):
        monkeypatch.setattr(module, name, run)


MODEL = ["--model", "llava_vid_flexselect", "--model_args", "pretrained=needle"]


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--output", "out"],
        ["recall", *MODEL, "--output", "out/recall.json"],
        ["recall", "--draw", "a.json", "--output", "out/recall.json"],
        ["pca", *MODEL, "--output", "out/pca.png"],
        ["plot", "results", "--over", "frames", "--output", "out/plot.png"],
        ["show", "video.mp4", "What is it?", "--output", "out"],
        ["show", "--dump", "dumped", "--output", "out"],
    ],
    ids=" ".join,
)
def test_without_matplotlib_nothing_is_measured(without_matplotlib, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lmms-flexselect: pictures need matplotlib: pip install 'lmms-flexselect[demo]' (")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["demo", "recall", "pca", "plot", "show"])
def test_help_needs_no_matplotlib(without_matplotlib, command, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([command, "--help"])
    assert f"lmms-flexselect {command}" in capsys.readouterr().out
