"""``lmms-flexselect plot``: accuracy over an option, a panel for each task, with the paper's curve where it has one."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.tools.plotting import pyplot
from lmms_flexselect.tools.scores.ablations import FRAMES, Curve, curves
from lmms_flexselect.tools.scores.paper import ablation, frames_options

_LABELS = {
    "frames": "input frames",
    "token_budget": "visual tokens kept",
    "reference_layer": "reference layer",
    "selector_size": "parameters of the selector (billions)",
    "share": "share of the training data (%)",
}
_LOG_FROM = 6  # times the smallest value
_COLUMNS = 3


def main(words: list[str]) -> int:
    """``lmms-flexselect plot RESULTS… --over OPTION``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lmms-flexselect plot", description=__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="lmms-eval's results files, or folders of them")
    parser.add_argument(
        "--over",
        required=True,
        metavar="OPTION",
        help="frames, token_budget, reference_layer, selector_size, share, selector, or any other option",
    )
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="SELECTOR=NUMBER",
        help="size in billions, or share in percent, of a selector whose name does not tell",
    )
    parser.add_argument("--output", type=Path, default=Path("ablation.png"), help="the PNG; its folder is made")
    given = parser.parse_args(words)
    pyplot()
    over = FRAMES if given.over in frames_options() else given.over
    found = curves(given.results, over, _places(given.at))
    print(table(found, over), end="")
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        draw(found, over, given.output)
    except OSError as error:
        raise FlexSelectError(f"--output {given.output}: cannot be written ({error.strerror or error})") from None
    print(f"picture: {given.output}")
    return 0


def _places(given: list[str]) -> dict[str, float]:
    places = {}
    for each in given:
        name, _, number = each.rpartition("=")
        try:
            places[name] = float(number)
        except ValueError:
            raise OptionError(f"--at {each}: give SELECTOR=NUMBER") from None
    return places


def table(found: list[Curve], over: str) -> str:
    """The curves as text, and the paper's."""
    import tabulate

    rows: list[list[Any]] = [
        [curve.task, curve.name, "any" if curve.level else point.value, point.points, _known(point.stderr), point.n]
        for curve in found
        for point in curve.points
    ]
    for task in dict.fromkeys(curve.task for curve in found):
        if (paper := ablation(over, task)) is not None:
            rows += [[task, paper[0], value, points, None, None] for value, points in paper[1].items()]
    return (
        tabulate.tabulate(rows, ["task", "run", over, "score", "± se", "n"], floatfmt=("", "", "g", ".2f", ".2f"))
        + "\n"
    )


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error


def draw(found: list[Curve], over: str, path: Path) -> None:
    """Write the panels as PNG; error bars are standard errors."""
    plt = pyplot()
    tasks = list(dict.fromkeys(curve.task for curve in found))
    across = min(_COLUMNS, len(tasks))
    down = -(-len(tasks) // across)
    figure, panels = plt.subplots(
        down, across, figsize=(1 + 5 * across, 4.2 * down), layout="constrained", squeeze=False
    )
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(curve.name for curve in found))}
    for axes in panels.flat[len(tasks) :]:
        axes.set_axis_off()
    for task, axes in zip(tasks, panels.flat, strict=False):
        _panel(axes, [curve for curve in found if curve.task == task], over, colours)
        axes.set_title(task, loc="left", fontsize=11)
        axes.set(xlabel=_LABELS.get(over, over), ylabel="score")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axes: Any, found: list[Curve], over: str, colours: dict[str, str]) -> None:
    paper = ablation(over, found[0].task)
    values = list(dict.fromkeys(point.value for curve in found if not curve.level for point in curve.points))
    if words := any(isinstance(value, str) for value in values):
        paper = None
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    else:
        values = sorted({*values, *(paper[1] if paper else ())})
        if values[0] > 0 and values[-1] >= _LOG_FROM * values[0]:
            axes.set_xscale("log", base=2)
        if len(values) <= 12:
            axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
            axes.minorticks_off()
    for curve in found:
        colour = colours[curve.name]
        scores = [point.points for point in curve.points]
        errors = [_known(point.stderr) or 0.0 for point in curve.points]
        if curve.level:
            axes.axhline(scores[0], color=colour, ls="--", lw=1.2, label=curve.name)
            axes.axhspan(scores[0] - errors[0], scores[0] + errors[0], color=colour, alpha=0.1, lw=0)
            continue
        x = [values.index(point.value) if words else point.value for point in curve.points]
        axes.errorbar(x, scores, yerr=errors, marker="o", lw=2, capsize=3, color=colour, label=curve.name)
    if paper is not None:
        axes.plot(list(paper[1]), list(paper[1].values()), marker="s", ls=":", color="#555555", label=paper[0])
