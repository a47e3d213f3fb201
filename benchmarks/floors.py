"""What a first token of the published 7B and 8B models costs at least: arithmetic alone, nothing is run.

``python benchmarks/floors.py --peak-tflops 989 --bandwidth-gbs 3350`` (an H100's data sheet, bfloat16).
"""

from __future__ import annotations

import argparse

import torch
import transformers
from random_videollms import BEFORE, NAMES, build
from tabulate import tabulate

from lmms_flexselect.flops import Peaks, Sample, tokens_of_unit, work
from lmms_flexselect.selection import round_up

GRID = (22, 38)  # Qwen2.5-VL's patches of a 16:9 frame within the preset's bounds: 209 tokens a pair
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
        grid = GRID if name == "qwen2_5_vl" else None
        a_unit = tokens_of_unit(name, llm.config, grid)
        for frames in arguments.frames:
            units = frames // 2 if name == "qwen2_5_vl" else frames
            budget = llm.budget or units * a_unit
            budget = round_up(budget, a_unit) if llm.family(with_selector=False).round_budget else budget
            for selector in ("none", "reference", "lite", "uniform"):
                kept = units * a_unit if selector == "none" else min(units * a_unit, budget)
                sample = Sample(units, UNITS_PER_SET, kept, BEFORE, arguments.question)
                layer = llm.layer if selector == "reference" else None
                own = llm.selector.config if selector == "lite" else None
                costs = work(name, llm.config, sample, layer, own, grid)
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
