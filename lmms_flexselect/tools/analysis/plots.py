"""Pictures of the layer analysis: recall over layers, and tokens in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms_flexselect.method.relevance import REDUCTIONS
from lmms_flexselect.saving import saving
from lmms_flexselect.tools.plotting import pyplot

_REDUCTIONS = {"max": ("#d62728", "o"), "mean": ("#1f77b4", "s")}
_GROUPS = {
    "other": ("#b0b0b0", "other visual tokens", 8),
    "needle": ("#d62728", "needle", 26),
    "query": ("#1f77b4", "query", 16),
}


def recall_over_layers(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each result of `report`: a line for each reduction, its intervals shaded; as PNG."""
    plt = pyplot()
    figure, panels = plt.subplots(
        1, len(results), figsize=(1.0 + 4.4 * len(results), 3.9), layout="constrained", sharey=True, squeeze=False
    )
    for result, axes in zip(results, panels[0], strict=True):
        _recall_panel(axes, result)
        of = "its selector, " if result["scored_by"] == "selector" else ""
        axes.set_title(f"{result['model']}: {of}{result['samples']} samples", loc="left", fontsize=10)
    panels[0][0].set(ylim=(-0.02, 1.04), ylabel="recall@K of the needle")
    panels[0][0].legend(frameon=False)
    with saving(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)


def _recall_panel(axes: Any, result: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = [entry["layer"] for entry in result["layers"]]
    for reduction in REDUCTIONS:
        colour, marker = _REDUCTIONS[reduction]
        mean, low, high = (
            np.array([entry[reduction][name] for entry in result["layers"]], dtype=float)
            for name in ("mean", "low", "high")
        )
        axes.fill_between(layers, low, high, alpha=0.18, lw=0, color=colour)
        axes.plot(layers, mean, marker=marker, lw=2, color=colour, label=f"{reduction} over heads and text")
        best = result["recommended_layer"][reduction]
        axes.plot(best, mean[layers.index(best)], "o", ms=14, mfc="none", mec=colour, mew=1.2)
    axes.axhline(result["recall_by_chance"], color="black", lw=0.8, ls=":")
    axes.annotate(
        "chance", (layers[0], result["recall_by_chance"]), textcoords="offset points", xytext=(0, 3), fontsize=8
    )
    axes.set_xlabel("layer of the selector" if result["scored_by"] == "selector" else "decoder layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def tokens_in_layers(
    points: Mapping[int, npt.NDArray[np.float64]],
    groups: npt.NDArray[np.str_],
    explained: Mapping[int, float],
    title: str,
    path: Path,
    columns: int = 4,
) -> None:
    """A panel for each layer with its tokens ``(tokens, 2)``, coloured by group; as PNG."""
    plt = pyplot()
    columns = min(columns, len(points))
    rows = -(-len(points) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 3.1 * rows + 0.6), layout="constrained", squeeze=False
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (layer, own) in zip(panels.flat, points.items(), strict=False):
        axes.set_axis_on()
        for group, (colour, label, size) in _GROUPS.items():
            mine = own[groups == group]
            axes.scatter(mine[:, 0], mine[:, 1], s=size, color=colour, label=label, lw=0, alpha=0.8)
        axes.set_title(f"layer {layer} ({explained[layer]:.0%} of variance)", loc="left", fontsize=9)
        axes.set(xticks=[], yticks=[])
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title, fontsize=10)
    with saving(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)
