"""``lmms-flexselect …``: the commands of this package outside lmms-eval."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.needle import CHECKPOINTS

PLACES = ("tasks", "run_configs", *(f"needle/{folder.name}" for folder in sorted(CHECKPOINTS.iterdir())))


def installed_path(place: str) -> Path:
    """Folder of the installed tasks, run configurations or needle checkpoints.

    ``tasks`` goes to ``lmms-eval --include_path``; ``needle/qwen2_5_vl`` and the like are the tiny trained models that
    the demo runs.
    """
    if place.startswith("needle/"):
        return CHECKPOINTS / place.removeprefix("needle/")
    spec = find_spec(f"lmms_flexselect.{place}")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"lmms_flexselect.{place} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lmms-flexselect", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    path = commands.add_parser("path", help="print where tasks, run configs or a needle model are installed")
    path.add_argument("place", choices=PLACES)
    demo = commands.add_parser("demo", help="run the needle benchmark through lmms-eval: a table and two pictures")
    demo.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for results and pictures")
    commands.add_parser("train", help="train a FlexSelect-Lite selector: lmms-flexselect train --help", add_help=False)
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if chosen.command == "path":
        print(installed_path(chosen.place))
        return 0
    try:
        if chosen.command == "train":
            from lmms_flexselect.training.command import main as run_training

            return run_training(rest)
        from lmms_flexselect.demo import main as run_demo

        return run_demo(chosen.output)
    except FlexSelectError as error:
        print(f"lmms-flexselect: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
