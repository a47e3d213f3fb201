"""Pictures of what selection did: accuracy over video length, and a video's frames with the kept tokens lit."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lmms_flexselect.demo import MODELS, Measured
from lmms_flexselect.dump import read_selection

_COLOURS = {"none": "#7f7f7f", "random": "#e377c2", "uniform": "#1f77b4", "reference": "#d62728", "lite": "#2ca02c"}
_LABELS = {
    "none": "all tokens",
    "random": "random",
    "uniform": "uniform",
    "reference": "FlexSelect",
    "lite": "FlexSelect-Lite",
}
_MARKERS = {"none": "s", "random": "v", "uniform": "^", "reference": "o", "lite": "D"}
_DIMMED = 0.28


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


def kept_tokens(selection: Path, path: Path, columns: int = 16) -> None:
    """The frames of a dumped sample's first video; dropped tokens dimmed, kept ones lit and framed; written as PNG."""
    import decord

    arrays, sample = read_selection(selection)
    video = sample["videos"][0]
    frames, rows, cols = (int(n) for n in arrays["grids"][0])
    own = arrays["video"] == 0
    kept = arrays["kept"][own].reshape(frames, rows, cols)
    per_frame = max(1, len(video["frames_indices"]) // frames)
    indices = video["frames_indices"][::per_frame][:frames]
    images = decord.VideoReader(video["path"]).get_batch(indices).asnumpy()

    height = -(-frames // columns)
    figure, grid = plt.subplots(
        height, columns, figsize=(columns * 0.72, height * 0.84 + 0.5), layout="constrained", squeeze=False
    )
    for number, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if number >= frames:
            continue
        lit = np.kron(kept[number], np.ones((images.shape[1] // rows, images.shape[2] // cols), bool))
        image = images[number][: lit.shape[0], : lit.shape[1]]
        axes.imshow(np.where(lit[..., None], image, (image * _DIMMED).astype(np.uint8)))
        axes.set_title(str(number), fontsize=6, pad=1.5, color="#d62728" if kept[number].any() else "#999999")
        for row, col in np.argwhere(kept[number]):
            side = (lit.shape[1] / cols, lit.shape[0] / rows)
            corner = (col * side[0] - 0.5, row * side[1] - 0.5)
            axes.add_patch(Rectangle(corner, *side, fill=False, ec="white", lw=1.0))
    title = f"{sample['task']}, sample {sample['doc_id']}: {kept.sum()} of {kept.size} visual tokens kept"
    question = sample.get("question")
    figure.suptitle(f"{question}\n{title}" if question else title, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
