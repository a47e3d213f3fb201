"""The real lmms-eval command on this package, broken on purpose: ``python -m tests.support.broken FOLDER``.

Every entry of `RUNS` asks one model of the regression config, and leaves its results in a folder of that name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmms_eval.__main__ import cli_evaluate

from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selectors import Random, ReferenceLayer
from lmms_flexselect.tools.installed import installed_path

TASK = "flexselect_needle_256"


def nothing(monkey: pytest.MonkeyPatch) -> None:
    """As it is: the control."""


def random_instead_of_reference(monkey: pytest.MonkeyPatch) -> None:
    """Scores are not looked at."""
    monkey.setattr(ReferenceLayer, "__call__", lambda self, *arguments, **kwargs: Random()(*arguments))


def one_layer_too_high(monkey: pytest.MonkeyPatch) -> None:
    """The layer is counted from 1."""
    own = ReferenceLayer.__call__

    def called(self: ReferenceLayer, *arguments: Any, **kwargs: Any) -> Any:
        return own(replace(self, layer=self.layer + 1), *arguments, **kwargs)

    monkey.setattr(ReferenceLayer, "__call__", called)


def dropped_positions(monkey: pytest.MonkeyPatch) -> None:
    """Kept tokens move together instead of staying at the positions they had."""
    own = VideoPrompt.keep
    monkey.setattr(VideoPrompt, "keep", lambda self, mask: own(replace(self, closes_up=True), mask))


RUNS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "control": (nothing, "llava_vid"),
    "random": (random_instead_of_reference, "llava_vid"),
    "layer": (one_layer_too_high, "internvl_hf"),
    "positions": (dropped_positions, "qwen2_5_vl"),
}


def main(folder: Path) -> None:
    """Answer the questions of all `RUNS` in this process."""
    config = yaml.safe_load((installed_path("run_configs") / "regression.yaml").read_text())
    for name, (break_it, family) in RUNS.items():
        (run,) = [run for run in config if run["output_path"] == f"results/{family}/flexselect"]
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**run, "tasks": TASK, "output_path": str(folder / name)}))
        sys.argv = ["lmms_eval", "--config", str(file), "--include_path", str(installed_path("tasks"))]
        with pytest.MonkeyPatch.context() as monkey:
            break_it(monkey)
            cli_evaluate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
