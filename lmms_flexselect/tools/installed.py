"""``lmms-flexselect path``: where tasks, run configurations and needle models are installed."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.needle import PRETRAINED

_MODELS = {f"{name}/{folder.name}": folder for name, of in PRETRAINED.items() for folder in sorted(of.iterdir())}
PLACES = ("tasks", "run_configs", *_MODELS)


def installed_path(place: str) -> Path:
    """Folder of the installed tasks, run configurations or needle checkpoints.

    ``tasks`` goes to ``lmms-eval --include_path``; ``needle/FAMILY`` is the tiny trained model of a family.
    """
    if place in _MODELS:
        return _MODELS[place]
    spec = find_spec(f"lmms_flexselect.{place}")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"lmms_flexselect.{place} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def demo_runs(config: Path | None = None) -> list[dict[str, Any]]:
    """The runs of a config of ``lmms-eval``; the demo's own without one."""
    return yaml.safe_load((config or installed_path("run_configs") / "demo.yaml").read_text())


def main(words: list[str]) -> int:
    """``lmms-flexselect path PLACE``."""
    parser = argparse.ArgumentParser(prog="lmms-flexselect path", description=__doc__)
    parser.add_argument("place", choices=PLACES)
    print(installed_path(parser.parse_args(words).place))
    return 0
