"""``lmms-flexselect prepare``: a benchmark's data, downloaded, unpacked and counted."""

from __future__ import annotations

import argparse
import os

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.runtime.hf_home import hf_home
from lmms_flexselect.tools.preparation.benchmarks import BENCHMARKS
from lmms_flexselect.tools.preparation.presence import Presence, presence


def main(words: list[str]) -> int:
    """``lmms-flexselect prepare BENCHMARK …``: 0 if all that was asked for is there."""
    parser = argparse.ArgumentParser(
        prog="lmms-flexselect prepare",
        description="Download a benchmark's data and unpack them to where lmms-eval looks, below HF_HOME. Can be "
        "stopped and started again; what is there is left alone.",
    )
    names = (*BENCHMARKS, "all")
    parser.add_argument("benchmark", nargs="+", choices=names, metavar="BENCHMARK", help=f"of {', '.join(names)}")
    parser.add_argument("--check", action="store_true", help="only look; needs no hub")
    parser.add_argument("--videos", action="store_true", help="also open each video that is there, and list bad ones")
    parser.add_argument(
        "--delete_archives", action="store_true", help="delete each archive when it is unpacked: half the disk"
    )
    arguments = parser.parse_args(words)
    chosen = [b for name, b in BENCHMARKS.items() if {name, "all"} & set(arguments.benchmark)]
    home = hf_home()
    failures = []
    if not arguments.check:
        from lmms_flexselect.tools.preparation.prepare import prepare  # loads huggingface_hub

        for benchmark in chosen:
            try:
                prepare(benchmark, home, arguments.delete_archives)
            except FlexSelectError as error:  # the other benchmarks may well be had
                failures.append(f"{benchmark.name}: {error}")
    found = [part for benchmark in chosen for part in presence(benchmark, home)]
    print(table(found))
    for line in [*failures, *remarks(found)]:
        print(line)
    if arguments.videos:
        from lmms_flexselect.video.checking import report_of_files  # loads torch

        report, bad = report_of_files(list(dict.fromkeys(str(path) for part in found for path in part.present)))
        print(report)
        failures += [f"{bad} video(s) cannot be read"] if bad else []
    if arguments.check:
        for name in dict.fromkeys(part.benchmark.name for part in found if not part.complete):
            print(f"{name}: run lmms-flexselect prepare {name}")
    return 1 if failures or not all(part.complete for part in found) else 0


def table(found: list[Presence]) -> str:
    """What is there, of what is needed, a line for each set of questions."""
    rows = [("benchmark", "questions", "videos", "subtitles", "", "folder")]
    for part in found:
        of = part.questions.count
        several = len(part.benchmark.questions) > 1
        rows.append(
            (
                f"{part.benchmark.name} ({part.questions.tasks[0]})" if several else part.benchmark.name,
                f"{part.found:,}" if of is None or of == part.found else f"{part.found:,} of {of:,}",
                f"{part.videos:,} of {part.videos_needed:,}",
                f"{part.subtitles:,} of {part.subtitles_needed:,}" if part.questions.subtitle else "",
                "complete" if part.complete else "INCOMPLETE",
                str(part.folder),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def remarks(found: list[Presence]) -> list[str]:
    """What is missing, a line each, and what no command can do about it."""
    lines = []
    for part in found:
        lines += [f"{part.benchmark.name}: {complaint}" for complaint in part.complaints]
    for benchmark in dict.fromkeys(part.benchmark for part in found if part.absent and part.benchmark.note):
        lines.append(f"{benchmark.name}: {benchmark.note}")
    if not os.getenv("HF_HOME") and any("mlvu_dev" in part.questions.tasks for part in found):
        lines.append(
            f"mlvu: lmms-eval's mlvu_dev finds its videos only where HF_HOME is set: export HF_HOME={hf_home()}"
        )
    return lines
