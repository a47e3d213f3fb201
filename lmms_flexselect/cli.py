"""``lmms-flexselect …``: the commands of this package outside lmms-eval."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from lmms_flexselect.errors import FlexSelectError

# Each is a `main(words) -> exit status` of a module of this package, imported only when it is called.
COMMANDS = {
    "path": ("print where tasks, run configs or a needle model are installed", "tools.installed:main"),
    "demo": (
        "run the needle benchmark through lmms-eval: a table and two pictures",
        "tools.demo:command",
    ),
    "plot": ("draw results over an option, beside the paper's curve", "tools.scores.plot:main"),
    "show": ("see what selection sees of a video: a page and pictures", "tools.show.command:main"),
    "prepare": (
        "download and unpack a benchmark's data, and count them",
        "tools.preparation.command:main",
    ),
    "recall": (
        "how well each layer finds a needle: its reference layer",
        "tools.analysis.recall_command:main",
    ),
    "pca": (
        "query, needle and other tokens in each layer, in two dimensions",
        "tools.analysis.pca:main",
    ),
    "scores": ("compare, record and check results", "tools.scores.command:main"),
    "doctor": ("say whether this machine can run a config", "tools.doctor.command:main"),
    "train": ("train a FlexSelect-Lite selector", "training.command:main"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lmms-flexselect", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, _) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    chosen, words = parser.parse_known_args(arguments)
    module, function = COMMANDS[chosen.command][1].split(":")
    try:
        return int(getattr(import_module(f"lmms_flexselect.{module}"), function)(words))
    except FlexSelectError as error:
        print(f"lmms-flexselect: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
