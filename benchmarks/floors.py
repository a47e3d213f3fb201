"""What a first token of the published 7B and 8B models costs at least: arithmetic alone, nothing is run.

``python benchmarks/floors.py --peak-tflops 989 --bandwidth-gbs 3350`` (an H100's data sheet, bfloat16).
"""

from __future__ import annotations

import argparse

import torch
import transformers
from random_videollms import BEFORE, NAMES, build
from tabulate import tabulate

from lmms_flexselect.cost.flops import Peaks, Request, work
from lmms_flexselect.families.spec import family
from lmms_flexselect.method.selection import round_up

GRID = (22, 38)  # patches of a 16:9 frame within the preset's bounds, where a family reads frames of any size
UNITS_PER_SET = 64


def main() -> None:
    """Print a table: operations of each part in units of 10¹², bytes in all, the floor's seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--frames", nargs="+", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--question", type=int, default=80, help="text tokens behind the video")
    parser.add_argument("--peak-tflops", type=float, required=True)
    parser.add_argument("--bandwidth-gbs", type=float, required=True)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    peaks = Peaks(arguments.peak_tflops * 1e12, arguments.bandwidth_gbs * 1e9)
    lines = []
    for name in arguments.families:
        llm = build(name, "published", torch.device("meta"), torch.bfloat16)
        shapes = {lite: llm.shape(lite, GRID) for lite in (False, True)}
        a_unit = shapes[False].tokens
        for frames in arguments.frames:
            units = frames // family(name).frames_per_unit
            budget = llm.budget or units * a_unit
            budget = round_up(budget, a_unit) if llm.family(with_selector=False).round_budget else budget
            for selector in ("none", "flexselect", "lite", "uniform"):
                kept = units * a_unit if selector == "none" else min(units * a_unit, budget)
                request = Request(units, UNITS_PER_SET, kept, BEFORE, arguments.question)
                layer = llm.layer if selector == "flexselect" else None
                costs = work(shapes[selector == "lite"], request, layer)
                lines.append(
                    {
                        "family": name,
                        "frames": frames,
                        "selector": selector,
                        "kept": f"{kept:,} of {units * a_unit:,}",
                        **{part: f"{costs[part].flops / 1e12:.1f}" for part in ("vision", "scoring", "prefill")},
                        "GB moved": f"{sum(cost.bytes for cost in costs.values()) / 1e9:.0f}",
                        "floor, s": f"{sum(cost.seconds(peaks) for cost in costs.values()):.2f}",
                    }
                )
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
