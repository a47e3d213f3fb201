"""Time to first token and its parts, of all three families and selectors, against a floor; and peak memory.

``python benchmarks/first_token.py`` on an otherwise idle machine: on a GPU the published 7B and 8B shapes in bfloat16,
on a CPU scaled-down ones in float32 (see `random_videollms`; ``OMP_NUM_THREADS`` says how many threads). Weights and
question are random; the video is noise (640 by 360, scaled down 320 by 180, every second frame read) unless ``--video``
names one. Nothing is kept from one question to the next. All selectors of a family take turns, so that what else goes
on disturbs them alike.

Parts end where the GPU has finished; they add up to the time to first token. *vision* is all from pixels to the
prompt's embeddings, *selection* what FlexSelect does beside scoring, *prefill* the decoder's forward pass over the
shortened prompt, *first token* the rest of transformers' ``generate``. The floor is that of
`lmms_flexselect.cost.flops` for the last five, with peaks that are given, or measured first by a bare matrix product
and a bare copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from bars import stacked_bars
from measuring import SELECTORS, Measured, measure_family, measured_peaks
from part_clock import PARTS
from random_videollms import NAMES, SCALES, build
from tabulate import tabulate

from lmms_flexselect.cost.flops import Peaks
from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.runtime.measure import now


def table(found: list[Measured], tablefmt: str = "github") -> str:
    """A line for each selector and number of frames; seconds."""
    whole = {(m.family, m.frames): m for m in found if m.selector == "none" and m.runs}
    lines = []
    for each in found:
        line: dict[str, Any] = {"family": each.family, "frames": each.frames, "selector": each.selector}
        if not each.runs:
            lines.append({**line, "kept": each.failed})
            continue
        line |= {"kept": f"{each.kept:,} of {each.visual:,}"}
        line |= {part: f"{each.seconds(part):.3f}" for part in PARTS}
        line |= {"to first token": f"{each.seconds():.3f}"}
        base = whole.get((each.family, each.frames))
        line |= {"of none": f"{each.seconds() / base.seconds():.2f}" if base else ""}
        line |= {"floor": f"{sum(each.floor.values()):.3f}", "over floor": f"{each.over_floor:.2f}"}
        lines.append({**line, "peak GiB": f"{each.peak_gib:.2f}"})
    return tabulate(lines, headers="keys", tablefmt=tablefmt, disable_numparse=True)


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_noise(path: str, frames: int, cell: int) -> None:
    """A video of 80 by 45 random colours, each a square of `cell` pixels, at two frames a second."""
    noise = np.random.default_rng(0).integers(0, 256, (frames, 45, 80, 3), dtype=np.uint8)
    write_video(path, noise.repeat(cell, 1).repeat(cell, 2))


def as_json(each: Measured) -> dict[str, Any]:
    """All that is known of one line of the table."""
    medians = {part: each.seconds(part) for part in PARTS} if each.runs else None
    total = each.seconds() if each.runs else None
    return {**vars(each), "median_seconds": medians, "median_time_to_first_token": total}


def write(folder: Path, about: dict[str, Any], found: list[Measured]) -> None:
    """Table, JSON file and picture of what has been measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {**about, "results": [as_json(each) for each in found]}
    (folder / "first_token.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "first_token.md").write_text(table(found) + "\n")
    title = f"{about['shapes']} shapes, {about['dtype']}, {about['machine']['device']}"
    stacked_bars(found, title, f"seconds of {about['seconds_of']}", folder / "first_token.png")


def main() -> None:
    """Print a table, and write it with a JSON file and a picture."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--frames", nargs="+", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--selectors", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    parser.add_argument("--repeats", type=int, default=5, help="turns that count; one more is warm-up")
    parser.add_argument("--scale", choices=SCALES, default="published" if on_gpu else "small")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if on_gpu else "cpu"))
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16" if on_gpu else "float32")
    parser.add_argument(
        "--cpu-time", action="store_true", help="in place of the clock's: on a CPU that others use, too"
    )
    parser.add_argument("--video", help="a file of as many frames as are read, or more")
    parser.add_argument("--peak-tflops", type=float, help="of the machine; measured if not given")
    parser.add_argument("--bandwidth-gbs", type=float, help="GB/s of its memory; measured if not given")
    parser.add_argument("--output", type=Path, default=Path("first_token"), help="a folder")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    on_gpu = device.type == "cuda"
    if on_gpu and arguments.cpu_time:
        parser.error("--cpu-time says nothing of a GPU")
    before, clock = machine(device), time.process_time if arguments.cpu_time else now
    peaks = measured_peaks(device, dtype, *((8192, 2**30) if on_gpu else (1024, 2**28)), clock)
    given = (arguments.peak_tflops or peaks.flops / 1e12, arguments.bandwidth_gbs or peaks.bandwidth / 1e9)
    peaks = Peaks(given[0] * 1e12, given[1] * 1e9)
    about = {
        "shapes": arguments.scale,
        "dtype": arguments.dtype,
        "machine": before,
        "peak_tflops": given[0],
        "bandwidth_gbs": given[1],
        "repeats": arguments.repeats,
        "seconds_of": "CPU time" if arguments.cpu_time else "the clock",
    }
    found: list[Measured] = []
    with TemporaryDirectory() as folder:
        paths = {frames: arguments.video or f"{folder}/{frames}.mp4" for frames in arguments.frames}
        for frames, path in paths.items():
            if not arguments.video:  # every second frame is read
                write_noise(path, 2 * frames, 8 if arguments.scale == "published" else 4)
        for name in arguments.families:
            llm = build(name, arguments.scale, device, dtype)
            for frames, path in paths.items():
                selectors = tuple(arguments.selectors)
                found += measure_family(llm, path, frames, selectors, arguments.repeats, peaks, clock=clock)
                print(table(found[-len(selectors) :], "simple"), flush=True)
                write(arguments.output, {**about, "load_after": os.getloadavg()}, found)
            del llm
    print(f"{before['device']}: {given[0]:.3g} TFLOP/s, {given[1]:.3g} GB/s; load {before['load'][0]:.1f} before")


if __name__ == "__main__":
    main()
