"""The parts of a time to first token as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from part_clock import PARTS

from lmms_flexselect.cost import flops

# From below: what has a floor first, so that the floor's line can be read beside it.
_ORDER = (*flops.PARTS, *(part for part in PARTS if part not in flops.PARTS))
_COLOURS = dict(zip(_ORDER, ("#1f77b4", "#d62728", "#ff9896", "#2ca02c", "#98df8a", "#c7c7c7", "#7f7f7f"), strict=True))


def stacked_bars(found: Sequence[Any], title: str, unit: str, path: Path) -> None:
    """A panel for each family and number of frames, a bar for each selector, a line at its floor; written as PNG.

    `found` are `first_token.Measured`.
    """
    families = list(dict.fromkeys(m.family for m in found))
    counts = sorted({m.frames for m in found})
    figure, panels = plt.subplots(
        len(families),
        len(counts),
        figsize=(1.5 + 2.3 * len(counts), 0.9 + 2.3 * len(families)),
        layout="constrained",
        squeeze=False,
    )
    for row, family in zip(panels, families, strict=True):
        for axes, frames in zip(row, counts, strict=True):
            own = [m for m in found if (m.family, m.frames) == (family, frames)]
            for place, each in enumerate(own):
                below = 0.0
                for part in _ORDER if each.runs else ():
                    height = each.seconds(part)
                    axes.bar(place, height, 0.75, below, color=_COLOURS[part], label=part if not place else None)
                    below += height
                if each.runs:
                    floor = sum(each.floor.values())
                    label = "floor" if not place else None
                    axes.plot([place - 0.45, place + 0.45], [floor, floor], color="black", lw=1.6, label=label)
                else:
                    axes.annotate("did not fit", (place, 0), rotation=90, ha="center", va="bottom", fontsize=7)
            axes.set_xticks(range(len(own)), [m.selector for m in own], fontsize=7)
            axes.tick_params(axis="y", labelsize=7)
            axes.set_title(f"{family}, {frames} frames", fontsize=8, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(unit, fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)
