"""The arguments that ``recall`` and ``pca`` share: which model, which videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_flexselect.errors import OptionError
from lmms_flexselect.needle.naming import NAMINGS
from lmms_flexselect.options import whole_number
from lmms_flexselect.tools.analysis.haystacks import PLACES, Haystack, ImageNeedles, NeedleVideos, Source
from lmms_flexselect.tools.analysis.model import LoadedModel


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A command's parser with the options that both have."""
    made = argparse.ArgumentParser(prog=f"lmms-flexselect {command}", description=description)
    made.add_argument("--model", default="", help="lmms-eval's name of it: one of ours, …_flexselect")
    made.add_argument("--model_args", default="", help="as lmms-eval's; with selector=lite the selector is measured")
    made.add_argument("--videos", help="folder of videos to put needles into; our own needle videos without")
    made.add_argument("--needles", help="folder of images with a needles.json or needles.jsonl")
    made.add_argument(
        "--naming", default="colour", choices=NAMINGS, help="of our needle videos: what a question calls the glyph"
    )
    made.add_argument("--place", default="insert", choices=PLACES, help="between two frames, or over one")
    made.add_argument("--frames", type=int, help="frames a sample, as the family counts them; one frame set without")
    made.add_argument("--layers", default="all", help="all, or as in 0,4,8-12")
    made.add_argument("--seed", type=int, default=0, help="of videos and places")
    return made


def source_of(args: argparse.Namespace, units: int) -> Source:
    """Where the samples come from.

    Raises
    ------
    OptionError
        If folders are missing, or hold something else.
    """
    seed = whole_number("seed", args.seed, 0)
    if (args.videos is None) != (args.needles is None):
        given, missing = ("videos", "needles") if args.needles is None else ("needles", "videos")
        raise OptionError(f"{given}={getattr(args, given)}: give --{missing} too, or neither for our needle videos")
    if args.videos is None:
        return NeedleVideos(units, seed, args.naming)
    return ImageNeedles(args.videos, args.needles, units, args.place, seed)


def check_arguments(args: argparse.Namespace, suffix: str) -> None:
    """Raise `OptionError` for what is wrong before a model is loaded: folders, and an output of another suffix."""
    source_of(args, 64 if args.frames is None else whole_number("frames", args.frames, 1))
    output: Path = args.output
    if output.is_dir():
        raise OptionError(f"output={output}: is a folder; give a file")
    if output.suffix != suffix:
        raise OptionError(f"output={output}: must end in {suffix}")


def samples_of(args: argparse.Namespace, model: LoadedModel, count: int | None) -> tuple[Source, list[Haystack]]:
    """The source and its samples; that their videos can be read is checked."""
    source = source_of(args, args.frames or model.options.max_frames_per_set)
    samples = source.samples(source.count if count is None else whole_number("samples", count, 1))
    source.check(samples, model.reader.frames_per_unit)
    return source, samples
