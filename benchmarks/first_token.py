"""Time to first token and its parts, of all three families and selectors, against a floor; and peak memory.

``python benchmarks/first_token.py`` on an otherwise idle machine: on a GPU the published 7B and 8B shapes in bfloat16,
on a CPU scaled-down ones in float32 (see `random_videollms`; ``OMP_NUM_THREADS`` says how many threads). Weights and
question are random; the video is noise (640 by 360, scaled down 320 by 180, every second frame read) unless ``--video``
names one. Nothing is kept from one question to the next. All selectors of a family take turns, so that what else goes
on disturbs them alike.

Parts end where the GPU has finished; they add up to the time to first token. *vision* is all from pixels to the
prompt's embeddings, *selection* what FlexSelect does beside scoring, *prefill* the decoder's forward pass over the
shortened prompt, *first token* the rest of transformers' ``generate``. The floor is that of `lmms_flexselect.flops` for
the last five, with peaks that are given, or measured first by a bare matrix product and a bare copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from bars import stacked_bars
from part_clock import PARTS, PartClock
from random_videollms import BEFORE, NAMES, SCALES, VideoLLM, build
from tabulate import tabulate

from lmms_flexselect import flops
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.flexselect import FlexSelect
from lmms_flexselect.flops import Peaks, Sample, work
from lmms_flexselect.models._measure import now, peak_memory
from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.selectors import Uniform

SELECTORS = ("none", "reference", "lite", "uniform")
_KEPT_UNITS = 32  # what a token budget is worth where none is published


@dataclass
class Measured:
    """One selector on one number of frames.

    Attributes
    ----------
    runs
        Seconds of each part, run by run; without warm-up.
    peak_gib
        The most of all runs.
    visual, kept, text
        Tokens.
    floor, flops, bytes
        Seconds, operations and bytes of each of `flops.PARTS`.
    failed
        Why it could not be run.
    """

    family: str
    frames: int
    selector: str
    runs: list[dict[str, float]] = field(default_factory=list)
    peak_gib: float = 0.0
    visual: int = 0
    kept: int = 0
    text: int = 0
    floor: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    failed: str | None = None

    def seconds(self, *parts: str) -> float:
        """The median of what these parts took together; of all where none is named."""
        return median(sum(run.get(part, 0.0) for part in parts or PARTS) for run in self.runs)

    @property
    def over_floor(self) -> float:
        """How many times the floor its parts took."""
        return self.seconds(*flops.PARTS) / sum(self.floor.values())


def measure_family(
    llm: VideoLLM, path: str, frames: int, selectors: tuple[str, ...], repeats: int, peaks: Peaks, question: int = 80
) -> list[Measured]:
    """All selectors on one number of frames, taking turns; the first turn is warm-up."""
    found = [Measured(llm.name, frames, selector) for selector in selectors]
    ids = torch.randint(10, 1000, (question,), generator=torch.Generator().manual_seed(1))
    for turn in range(repeats + 1):
        for each in found:
            if each.failed is None:
                try:
                    seconds = _first_token(llm, each, path, ids, peaks)
                except (torch.OutOfMemoryError, FlexSelectError) as error:
                    each.failed = str(error).splitlines()[0]
                else:
                    each.runs += [seconds] if turn else []
                if each.failed is not None and torch.cuda.is_available():
                    torch.cuda.empty_cache()
    return found


@torch.no_grad()
def _first_token(llm: VideoLLM, found: Measured, path: str, question: torch.Tensor, peaks: Peaks) -> dict[str, float]:
    """Seconds of each part; what else is known of the sample goes into `found`."""
    lite = found.selector == "lite"
    family = llm.family(with_selector=lite)
    selector = {
        "none": lambda: None,
        "reference": lambda: family.reference_layer(llm.layer),
        "lite": lambda: family.lite(llm.selector),
        "uniform": Uniform,
    }[found.selector]()
    device, clock = llm.model.device, PartClock()
    with peak_memory() as peak, clock.at_seams():
        with clock.part("preprocess"):
            inputs = llm.inputs(path, found.frames, question)
        with clock.part("vision"):
            on_device = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
            (prompt,) = family.prompts(on_device)
        units, visual = prompt.grids[0][0], int(prompt.visual.sum())
        budget = llm.budget or _KEPT_UNITS * visual // units
        select = FlexSelect(selector, budget, round_budget=family.round_budget)
        with clock.part("selection"):
            selection = select(prompt)
        with clock.part("first token"), clock.forward(family.decoder, "prefill"):
            family.generate([selection.prompt], max_new_tokens=1, do_sample=False)
    found.peak_gib = max(found.peak_gib, peak.gib)
    found.visual, found.kept, found.text = visual, selection.kept_tokens, len(prompt) - visual
    sample = Sample(
        units, select.max_frames_per_set, selection.kept_tokens, BEFORE, len(question), item=llm.model.dtype.itemsize
    )
    costs = work(
        llm.name,
        llm.config,
        sample,
        layer=llm.layer if found.selector == "reference" else None,
        selector=llm.selector.config if lite else None,
        grid=inputs["video_grid_thw"][0, 1:].tolist() if "video_grid_thw" in inputs else None,
    )
    found.floor = {part: cost.seconds(peaks) for part, cost in costs.items()}
    found.flops = {part: cost.flops for part, cost in costs.items()}
    found.bytes = {part: cost.bytes for part, cost in costs.items()}
    return dict(clock.seconds)


def measured_peaks(device: torch.device, dtype: torch.dtype, side: int, copied: int) -> Peaks:
    """The best of twenty products of square matrices, and of twenty copies of so many bytes."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def fastest(function: Any) -> float:
        times = []
        for _ in range(20):
            start = now()
            function()
            times.append(now() - start)
        return min(times)

    product, copy = fastest(lambda: a @ b), fastest(lambda: target.copy_(source))
    return Peaks(2 * side**3 / product, 2 * copied / copy)


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
    parser.add_argument("--video", help="a file of as many frames as are read, or more")
    parser.add_argument("--peak-tflops", type=float, help="of the machine; measured if not given")
    parser.add_argument("--bandwidth-gbs", type=float, help="GB/s of its memory; measured if not given")
    parser.add_argument("--output", type=Path, default=Path("first_token"), help="a folder")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    on_gpu = device.type == "cuda"
    before = machine(device)
    peaks = measured_peaks(device, dtype, *((8192, 2**30) if on_gpu else (1024, 2**28)))
    given = (arguments.peak_tflops or peaks.flops / 1e12, arguments.bandwidth_gbs or peaks.bandwidth / 1e9)
    peaks = Peaks(given[0] * 1e12, given[1] * 1e9)
    arguments.output.mkdir(parents=True, exist_ok=True)
    found: list[Measured] = []
    with TemporaryDirectory() as folder:
        paths = {frames: arguments.video or f"{folder}/{frames}.mp4" for frames in arguments.frames}
        for frames, path in paths.items():
            if not arguments.video:  # every second frame is read
                write_noise(path, 2 * frames, 8 if arguments.scale == "published" else 4)
        for name in arguments.families:
            llm = build(name, arguments.scale, device, dtype)
            for frames in arguments.frames:
                selectors = tuple(arguments.selectors)
                found += measure_family(llm, paths[frames], frames, selectors, arguments.repeats, peaks)
                print(table(found[-len(selectors) :], "simple"), flush=True)
            del llm
    about = {
        "shapes": arguments.scale,
        "dtype": arguments.dtype,
        "machine": before,
        "load_after": os.getloadavg(),
        "peak_tflops": given[0],
        "bandwidth_gbs": given[1],
        "repeats": arguments.repeats,
    }
    results = {**about, "results": [as_json(each) for each in found]}
    (arguments.output / "first_token.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.output / "first_token.md").write_text(table(found) + "\n")
    stacked_bars(found, f"{arguments.scale} shapes, {before['device']}", arguments.output / "first_token.png")
    print(f"{before['device']}: {given[0]:.3g} TFLOP/s, {given[1]:.3g} GB/s; load {before['load'][0]:.1f} before")


if __name__ == "__main__":
    main()
