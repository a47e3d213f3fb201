"""``lmms-flexselect doctor [CONFIG.yaml]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.doctor.finding import NOTE, PROBLEM, Finding
from lmms_flexselect.tools.doctor.installation import of_machine
from lmms_flexselect.tools.doctor.machine import Machine, look
from lmms_flexselect.tools.installed import installed_path

_STOCK = ("videomme", "mlvu_dev", "longvideobench_val_v", "lvbench")


def main(words: list[str]) -> int:
    """Print the findings; returns 1 if the config, or without one the installation, cannot run."""
    parser = argparse.ArgumentParser(
        prog="lmms-flexselect doctor", description="say whether this machine can run a config, and what to do if not"
    )
    parser.add_argument("config", nargs="?", type=Path, help="file that lmms-eval --config would get")
    parser.add_argument("--include_path", help="as lmms-eval gets it; this package's tasks if not given")
    parser.add_argument(
        "--videos", type=Path, metavar="FOLDER", help="only open each video below a folder; list bad ones"
    )
    asked = parser.parse_args(words)
    _quiet()
    if asked.videos is not None:
        return of_videos(asked.videos)
    machine = look()
    findings = of_machine(machine)
    if not machine.broken:
        findings += of_supplies(machine) if asked.config is None else of_runs(machine, asked.config, asked.include_path)
    return report(findings, asked.config)


def of_videos(folder: Path) -> int:
    """Print which video files below a folder cannot be read; returns 1 if there are any, or no videos at all."""
    from lmms_flexselect.tools.analysis.haystacks import video_files
    from lmms_flexselect.video.checking import report_of_files

    try:
        names = video_files(folder)
    except FlexSelectError as error:
        print(error)
        return 1
    text, bad = report_of_files([str(folder / name) for name in names])
    print(text)
    return 1 if bad else 0


def of_supplies(machine: Machine) -> list[Finding]:
    """What is there for the stock tasks. Nothing is asked for, so nothing is wrong yet."""
    from lmms_flexselect.tools.doctor.datasets import data_sets
    from lmms_flexselect.tools.doctor.supplies import of_data, of_disk, of_token

    sets, _ = data_sets(_STOCK)
    data = [replace(each, level=NOTE if each.level == PROBLEM else each.level) for each in of_data(machine, sets)]
    return [*data, of_disk(machine, [], []), of_token(machine, sets)]


def of_runs(machine: Machine, config: Path, include_path: str | None) -> list[Finding]:
    """Whether what a config asks for can be had and run."""
    from lmms_flexselect.tools.doctor.datasets import data_sets
    from lmms_flexselect.tools.doctor.fitting import of_config
    from lmms_flexselect.tools.doctor.plan import plan, read_config
    from lmms_flexselect.tools.doctor.supplies import of_data, of_disk, of_tasks, of_token, of_weights

    try:
        runs = plan(read_config(config))
    except FlexSelectError as error:
        return [Finding(PROBLEM, "config", str(error), "correct the file")]
    unknown, leaves = _leaf_tasks([task for run in runs for task in run.tasks], include_path)
    sets, unheard = data_sets(leaves)
    found = [*of_config(machine, runs), *of_weights(machine, runs), *of_tasks(unknown)]
    return [*found, *of_data(machine, sets, unheard), of_disk(machine, runs, sets), of_token(machine, sets)]


def report(findings: Sequence[Finding], config: Path | None) -> int:
    """Print; returns the exit status."""
    for finding in findings:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        print(f"{finding.level:<8} {finding.subject:<10} {finding.text}{remedy}")
    problems = sum(finding.level == PROBLEM for finding in findings)
    what = f"{config} can run here" if config else "the installation is sound"
    cannot = f"{config} cannot run here" if config else "the installation is not sound"
    print(f"{cannot}: {problems} problem(s)" if problems else what)
    return 1 if problems else 0


def _leaf_tasks(tasks: Sequence[str], include_path: str | None) -> tuple[list[str], list[str]]:
    """Names that lmms-eval does not find, and the tasks that the others come to (groups have several)."""
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    manager = TaskManager("ERROR", include_path=include_path or str(installed_path("tasks")))
    unknown = [task for task in dict.fromkeys(tasks) if not manager.match_tasks([task])]
    leaves, waiting = [], manager.match_tasks([task for task in tasks if task not in unknown])
    while waiting:
        name = waiting.pop(0)
        entry = manager.task_index.get(name, {"type": "task"})  # a group may hold what has no name of its own
        if entry["type"] not in ("group", "tag"):
            leaves.append(name)
            continue
        own = entry["task"] if entry["task"] != -1 else load_yaml_config(entry["yaml_path"], mode="simple")["task"]
        waiting += [each for each in own if isinstance(each, str)]
    return unknown, list(dict.fromkeys(leaves))


def _quiet() -> None:
    """Nothing but the report: lmms-eval and transformers talk while they are imported."""
    import os
    import warnings

    from loguru import logger

    logger.remove()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
