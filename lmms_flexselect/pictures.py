"""Pictures of what selection did: accuracy over video length, and a video's frames with the kept tokens lit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from lmms_flexselect.dump import read_selection

if TYPE_CHECKING:
    from lmms_flexselect.demo import Measured

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
    """One line a selector over the number of frames, with the standard error of each point shaded; written as PNG."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for selector in dict.fromkeys(m.selector for m in measured):
        own = sorted((m for m in measured if m.selector == selector), key=lambda m: m.units)
        frames = np.array([2 * m.units for m in own])
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
    axes.set(ylim=(0, 1.04), xlabel="frames in the video", ylabel="needle questions answered")
    budget = round(min(m.tokens_kept for m in measured))
    axes.set_title(f"Answers from {budget} visual tokens, whatever the length of the video", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.14))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
