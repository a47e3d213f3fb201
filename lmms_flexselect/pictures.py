"""The demo's picture of what selection did: accuracy over video length."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from lmms_flexselect.demo import MODELS, Measured

_COLOURS = {"none": "#7f7f7f", "random": "#e377c2", "uniform": "#1f77b4", "reference": "#d62728", "lite": "#2ca02c"}
_LABELS = {
    "none": "all tokens",
    "random": "random",
    "uniform": "uniform",
    "reference": "FlexSelect",
    "lite": "FlexSelect-Lite",
}
_MARKERS = {"none": "s", "random": "v", "uniform": "^", "reference": "o", "lite": "D"}


def accuracy_over_length(measured: list[Measured], path: Path) -> None:
    """A panel for each model, a line for each selector, standard errors shaded; written as PNG."""
    models = list(dict.fromkeys(m.model for m in measured))
    figure, panels = plt.subplots(
        1, len(models), figsize=(1.2 + 5.4 * len(models), 4.6), layout="constrained", sharey=True, squeeze=False
    )
    for model, axes in zip(models, panels[0], strict=True):
        of_model = [m for m in measured if m.model == model]
        _accuracy_panel(axes, of_model)
        budget = round(min(m.tokens_kept for m in of_model))
        axes.set_title(f"{MODELS[model][0]}: answers from {budget} visual tokens", loc="left", fontsize=11)
    panels[0][0].set(ylim=(0, 1.04), ylabel="needle questions answered")
    panels[0][0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.14))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _accuracy_panel(axes: Axes, measured: list[Measured]) -> None:
    for selector in dict.fromkeys(m.selector for m in measured):
        own = sorted((m for m in measured if m.selector == selector), key=lambda m: m.units)
        frames = np.array([m.frames for m in own])
        accuracy = np.array([m.accuracy for m in own])
        error = np.sqrt(accuracy * (1 - accuracy) / np.array([m.questions for m in own]))
        colour, layer = _COLOURS[selector], 3 if selector == "reference" else 2
        axes.plot(
            frames, accuracy, marker=_MARKERS[selector], lw=2.2, label=_LABELS[selector], color=colour, zorder=layer
        )
        axes.fill_between(frames, accuracy - error, accuracy + error, alpha=0.15, lw=0, color=colour, zorder=layer)
    axes.set_xscale("log", base=2)
    axes.set_xticks(frames, [str(f) for f in frames])
    axes.axhline(1 / 8, color="black", lw=0.8, ls=":")
    axes.annotate("guessing", (frames[0], 1 / 8), textcoords="offset points", xytext=(0, 4), fontsize=8)
    axes.set_xlabel("frames read")
    axes.spines[["top", "right"]].set_visible(False)
