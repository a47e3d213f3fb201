"""``lmms-flexselect show``: a page and pictures of what selection sees, of a question or of a run's dump."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_flexselect.errors import FlexSelectError, OptionError, first_line
from lmms_flexselect.tools.plotting import pyplot

if TYPE_CHECKING:
    from lmms_flexselect.tools.show.views import VideoQuestion

_ALONE = ("model", "model_args", "layers", "max_new_tokens")  # of a question
_OF_DUMPS = ("samples", "compare_samples", "only", "limit", "videos")
_MOST = 12


def main(words: list[str]) -> int:
    """``lmms-flexselect show VIDEO QUESTION`` or ``show --dump FOLDER``; returns the exit status."""
    given = _parser().parse_args(words)
    pyplot()
    name, made = (_of_dump if given.dump else _of_question)(given)
    for each in made:
        for view in each.views:
            answer = "" if view.answer is None else f"; answer: {view.answer.strip()}"
            print(f"{each.title}: {view.name}: {view.kept_of_frames.sum()} of {view.tokens} tokens kept{answer}")
    write(made, Path(given.output), name)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lmms-flexselect show", description=__doc__)
    parser.add_argument("video", nargs="?", metavar="VIDEO")
    parser.add_argument("question", nargs="?", metavar="QUESTION")
    parser.add_argument("--output", default="show_output", help="folder for page.html and the PNGs")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        help="other model arguments to see beside (selector=lite), may be repeated; with --dump: another run's folder",
    )
    question = parser.add_argument_group("a question about a video")
    question.add_argument("--model", help="as lmms-eval's; default: the first that the demo runs")
    question.add_argument("--model_args", help="as lmms-eval's; default pretrained=needle")
    question.add_argument("--layers", help="see several reference layers: all, or such as 0,4-7")
    question.add_argument("--max_new_tokens", type=int, help="of the answer; default 16")
    run = parser.add_argument_group("a finished run")
    run.add_argument("--dump", type=Path, help="the folder of its dump_selection=")
    run.add_argument("--samples", type=Path, nargs="+", help="its samples files, or their folder")
    run.add_argument("--compare_samples", type=Path, nargs="+", help="those of --compare")
    run.add_argument("--only", choices=("right", "wrong"), help="samples that were answered so")
    run.add_argument("--limit", type=int, help=f"how many samples, default {_MOST}")
    run.add_argument("--videos", type=Path, help="folder to find the videos in by their names, if they have moved")
    return parser


def _refuse(given: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(given, name) is not None:
            raise OptionError(f"--{name}: {why}")


def _of_question(given: argparse.Namespace) -> tuple[str, list[VideoQuestion]]:
    if given.video is None or given.question is None:
        raise OptionError('give a video and a question (show VIDEO "QUESTION"), or --dump FOLDER of a finished run')
    _refuse(given, _OF_DUMPS, "goes with --dump")
    from loguru import logger

    from lmms_flexselect.tools.installed import demo_runs
    from lmms_flexselect.tools.show.question import views_of_question

    logger.remove()  # loading a model says much
    logger.add(sys.stderr, level="WARNING", format="{message}")
    made = views_of_question(
        given.model or demo_runs()[0]["model"],
        given.model_args or "pretrained=needle",
        given.compare,
        given.video,
        given.question,
        given.layers,
        given.max_new_tokens or 16,
    )
    return Path(given.video).stem, made


def _of_dump(given: argparse.Namespace) -> tuple[str, list[VideoQuestion]]:
    if given.video is not None:
        raise OptionError(f"{given.video}: give a video and a question, or --dump, not both")
    _refuse(given, _ALONE, "goes with a video and a question, not with --dump")
    if len(given.compare) > 1:
        raise OptionError("--compare: one other run's folder goes with --dump")
    if given.compare_samples and not given.compare:
        raise OptionError("--compare_samples: goes with --compare")
    if given.only and not given.samples:
        raise OptionError(f"--only {given.only}: goes with --samples, which tell what was right")
    if given.limit is not None and given.limit < 1:
        raise OptionError(f"--limit {given.limit}: must be at least 1")
    from lmms_flexselect.tools.show.dumps import read_dumps

    compare = Path(given.compare[0]) if given.compare else None
    made = read_dumps(
        given.dump, given.samples or (), compare, given.compare_samples or (), given.only, given.limit or _MOST
    )
    if given.videos is not None:
        for each in made:
            each.path = str(given.videos / Path(each.path).name)
    return given.dump.name, made


def write(made: list[VideoQuestion], folder: Path, title: str) -> None:
    """Write ``page.html`` and a PNG of every view into a folder; prints the path of each as it is done.

    Raises
    ------
    FlexSelectError
        If a video cannot be read, or the folder cannot be written.
    """
    from lmms_flexselect.tools.show.page import page
    from lmms_flexselect.tools.show.sheet import contact_sheet
    from lmms_flexselect.tools.show.views import thumbnails

    try:
        folder.mkdir(parents=True, exist_ok=True)
        keys = dict.fromkeys((each.path, tuple(each.indices)) for each in made)
        pictures = {(path, indices): thumbnails(path, indices) for path, indices in keys}
        whole = folder / "page.html"
        whole.write_text(page(made, pictures, f"{title}: what selection sees"), "utf-8")
        print(whole, flush=True)
        for each in made:
            for view in each.views:
                name = re.sub(r"[^\w.]+", "_", f"{each.title}_{view.name}").strip("_")
                picture = folder / f"{name}.png"
                contact_sheet(each, view, pictures[each.path, tuple(each.indices)], picture)
                print(picture, flush=True)
    except OSError as error:
        raise FlexSelectError(f"--output {folder}: cannot be written ({error.strerror or first_line(error)})") from None
