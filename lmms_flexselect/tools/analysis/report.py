"""What recall came to: means with confidence intervals, the recommended layer, a file and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap
from tabulate import tabulate

from lmms_flexselect.method.relevance import REDUCTIONS
from lmms_flexselect.recall_file import KIND
from lmms_flexselect.saving import replacing, saving

CONFIDENCE = 0.95
_RESAMPLES = 2000
_VERSIONS = ("lmms-flexselect", "lmms-eval", "torch", "transformers")


def intervals(values: npt.NDArray[np.float64], videos: Sequence[str]) -> npt.NDArray[np.float64]:
    """Means and percentile bootstrap intervals over videos: samples about one video are not independent.

    Parameters
    ----------
    values
        ``(samples, layers)``.
    videos
        What each sample is about.

    Returns
    -------
    ndarray
        ``(3, layers)``: mean, low, high; NaN bounds where there is but one video.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(videos))}
    of_video = np.array([names[name] for name in videos])
    counts = np.bincount(of_video).astype(float)
    sums = np.stack([np.bincount(of_video, weights=column) for column in values.T], axis=1)
    means = sums.sum(0) / counts.sum()
    if len(counts) < 2:
        return np.stack([means, np.full_like(means, np.nan), np.full_like(means, np.nan)])
    # A video that is drawn brings all its samples.
    drawn = bootstrap(
        (np.arange(len(counts)),),
        lambda chosen, axis: np.moveaxis(sums[chosen].sum(-2) / counts[chosen].sum(-1)[..., None], -1, 0),
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),  # `rng` from scipy 1.15 on
    )
    return np.stack([means, drawn.confidence_interval.low, drawn.confidence_interval.high])


def report(
    about: Mapping[str, Any],
    model: Mapping[str, Any],
    layers: Sequence[int],
    samples: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The result, as it goes into the file.

    Parameters
    ----------
    about
        What the samples depend on.
    model
        ``family``, ``num_layers`` and whatever else the file is to name of it.
    layers
        That were measured.
    samples
        Each with ``video``, ``k``, ``visual_tokens``, and ``recall``: for each reduction, a number a layer.
    """
    videos = [sample["video"] for sample in samples]
    by_layer: list[dict[str, Any]] = [{"layer": layer} for layer in layers]
    recommended = {}
    for reduction in REDUCTIONS:
        values = np.array([sample["recall"][reduction] for sample in samples], dtype=np.float64)
        found = intervals(values, videos)
        for entry, (mean, low, high) in zip(by_layer, found.T.tolist(), strict=True):
            bounds = {"low": low, "high": high} if np.isfinite(low) else {"low": None, "high": None}
            entry[reduction] = {"mean": mean, **bounds, "n": len(samples)}
        recommended[reduction] = layers[int(found[0].argmax())]  # of equal ones the first, which is the cheapest
    return {
        "kind": KIND,
        **model,
        "scored_by": about["scored_by"],
        "recommended_layer": recommended,
        "samples": len(samples),
        "videos": len(set(videos)),
        "needle_tokens": float(np.mean([sample["k"] for sample in samples])),
        "recall_by_chance": float(np.mean([sample["k"] / sample["visual_tokens"] for sample in samples])),
        "confidence": CONFIDENCE,
        "layers": by_layer,
        "about": dict(about),
        "versions": {name: version(name) for name in _VERSIONS},
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    with saving(path), replacing(path) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: Mapping[str, Any]) -> str:
    """A line a layer, the recommended ones marked."""
    rows = []
    for entry in result["layers"]:
        row: list[Any] = [entry["layer"]]
        for reduction in REDUCTIONS:
            own = entry[reduction]
            between = "" if own["low"] is None else f"{own['low']:.3f} to {own['high']:.3f}"
            mark = "*" if result["recommended_layer"][reduction] == entry["layer"] else ""
            row += [f"{own['mean']:.3f}{mark}", between]
        rows.append(row)
    headers = ["layer"]
    for reduction in REDUCTIONS:
        headers += [f"recall@K, {reduction}", f"{result['confidence']:.0%} interval"]
    words = ", ".join(f"{layer} ({reduction})" for reduction, layer in result["recommended_layer"].items())
    return (
        f"{tabulate(rows, headers, disable_numparse=True, stralign='right')}\n\n"
        f"{result['samples']} samples about {result['videos']} videos, K = {result['needle_tokens']:g} needle tokens, "
        f"{result['recall_by_chance']:.3f} by chance\nrecommended layer: {words}"
    )
