"""``lmms-flexselect train``: a selector from a VideoLLM and conversations about videos, by options or a YAML file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from loguru import logger
from transformers import HfArgumentParser, TrainingArguments, set_seed

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.reader import load_reader
from lmms_flexselect.families.spec import families
from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.lite.networks import network_of
from lmms_flexselect.method.relevance import REDUCTIONS
from lmms_flexselect.options import check_choice, whole_number
from lmms_flexselect.runtime.processes import Processes
from lmms_flexselect.training.cache import ScoreCache
from lmms_flexselect.training.data import KINDS, check_videos, read_samples, split_held_out
from lmms_flexselect.training.examples import QUERIES, VideoExamples, skipped_videos
from lmms_flexselect.training.fit import fit, training_arguments
from lmms_flexselect.training.losses import LOSSES
from lmms_flexselect.training.objective import Teacher
from lmms_flexselect.training.student import SIZES, new_selector


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SelectorOptions:
    """What is trained from what; everything else is transformers' `TrainingArguments`."""

    family: str = _option("", f"one of {', '.join(families())}")
    pretrained: str = _option("", "the VideoLLM: folder or hub name")
    data: str = _option("", "conversations about videos: .json, .jsonl, or a .yaml that lists such files")
    videos: str = _option("", "folder that the data's video paths begin in")
    init: str | None = _option(None, "the small decoder to start from: folder or hub name; none for random weights")
    num_hidden_layers: int | None = _option(None, "layers of the selector; with init, its first so many")
    hidden_size: int | None = _option(None, "with random weights")
    intermediate_size: int | None = _option(None, "with random weights")
    num_attention_heads: int | None = _option(None, "with random weights")
    num_key_value_heads: int | None = _option(None, "with random weights")
    train_projector: bool = _option(
        False, "a projector of its own where the family's selectors take the model's, cut and frozen"
    )
    reference_layer: int | None = _option(None, "the teacher's, 0-based; the family's default if none")
    reduction: str = _option("max", f"one of {', '.join(REDUCTIONS)}")
    frames: int = _option(64, "units a sample: frames, or what the family makes one unit of")
    share: float = _option(1.0, "share of the samples, between 0 and 1")
    kinds: list[str] = field(
        default_factory=list,
        metadata={"help": f"instruction types, of {', '.join(KINDS)}; all if none is given"},
    )
    query: str = _option("question_answer", f"one of {', '.join(QUERIES)}")
    loss: str = _option("spearman", f"one of {', '.join(LOSSES)}")
    held_out: int = _option(64, "videos that are evaluated on and not trained on")
    score_cache: str | None = _option(None, "folder for the teacher's scores, reused by other runs; none for none")
    teacher_dtype: str = _option("bfloat16", "of the VideoLLM's weights")
    attn_implementation: str | None = _option(None, "of the VideoLLM, flash_attention_2 for instance")

    def __post_init__(self) -> None:
        for name in ("family", "pretrained", "data", "videos"):
            if not getattr(self, name):
                raise OptionError(f"{name}: must be given")
        for name, allowed in (
            ("family", families()),
            ("reduction", REDUCTIONS),
            ("query", QUERIES),
            ("loss", LOSSES),
            ("teacher_dtype", ("bfloat16", "float16", "float32")),
        ):
            check_choice(name, getattr(self, name), allowed)
        network_of(self.family)
        for name in ("frames", "held_out", *SIZES):
            if getattr(self, name) is not None:
                setattr(self, name, whole_number(name, getattr(self, name), 1))


def run(options: SelectorOptions, output_dir: str, **training: Any) -> dict[str, float]:
    """Train a selector; returns what it was measured at on the held-out samples.

    Parameters
    ----------
    options
        What is trained from what.
    output_dir
        Folder of the run; one that was stopped goes on from its last whole checkpoint.
    training
        transformers' `TrainingArguments`.

    Raises
    ------
    FlexSelectError
        If anything does not fit, in one line.
    """
    arguments = training_arguments(output_dir, **training)
    reading = read_samples(options.data, options.videos, options.share, tuple(options.kinds), arguments.seed)
    samples, missing = check_videos(reading.samples)
    train, held_out = split_held_out(samples, options.held_out, arguments.seed)
    skipped = Path(output_dir) / "skipped.jsonl"

    dtype = getattr(torch, options.teacher_dtype)
    placed = {} if arguments.device.type == "cpu" else {"device_map": {"": str(arguments.device)}}
    if options.attn_implementation is not None:
        placed["attn_implementation"] = options.attn_implementation  # type: ignore[assignment]
    reader = load_reader(options.family, options.pretrained, dtype, options.frames, options.init, **placed)
    family = reader.family
    depth = len(family.decoder.layers)
    layer = options.reference_layer
    if layer is None:
        layer, _ = family_named(options.family).reference_layer(depth)
    if not 0 <= layer < depth:
        raise OptionError(f"reference_layer={layer}: this model has layers 0 to {depth - 1}")
    teacher = Teacher(family, layer, options.reduction)
    about = {
        "pretrained": options.pretrained,
        "frames": options.frames,
        "query": options.query,
        "tower": str(family.tower),
        "teacher_dtype": options.teacher_dtype,
    }
    whole = {**about, "reference_layer": layer, "reduction": options.reduction}
    cache = None if options.score_cache is None else ScoreCache(options.score_cache, whole)
    set_seed(arguments.seed)  # of what the student does not take from `init`
    student = new_selector(
        family.tower,
        options.init,
        {name: getattr(options, name) for name in SIZES},
        {"vocab_size": family.model.get_input_embeddings().num_embeddings},
        None if options.train_projector else network_of(options.family).teacher_projector(family.model),
    )
    train_set, evaluated = (VideoExamples(part, reader, options.query, cache, skipped) for part in (train, held_out))
    logger.info(f"{len(train)} samples to train on, {len(held_out)} held out; left out by reason: {reading.left_out}")
    for path, complaint in missing:
        logger.warning(f"left out {path}: {complaint}")
    metrics = fit(student, teacher, train_set, evaluated, arguments, options.loss, about, cache, reader.tokenizer)
    unreadable = skipped_videos(skipped)
    if unreadable:
        logger.warning(f"{len(unreadable)} unreadable video(s) were skipped; they are listed in {skipped}")
    return metrics


def main(words: list[str]) -> int:
    """``lmms-flexselect train [FILE.yaml …] [--option value …]``: the files' options in order, then the line's."""
    given: dict[str, Any] = {}
    while words and not words[0].startswith("-"):
        given |= _from_file(words.pop(0))
    parser = HfArgumentParser((SelectorOptions, TrainingArguments), prog="lmms-flexselect train")
    known = {name for action in parser._actions for name in action.option_strings}
    if unknown := [name for name in given if f"--{name}" not in known]:
        raise OptionError(f"unknown option {unknown[0]}: see lmms-flexselect train --help")
    lines = [*_as_words(given), *words]
    namespace = vars(parser.parse_args(lines))
    own = {f.name for f in fields(SelectorOptions)}
    explicit = {word[2:].split("=")[0].replace("-", "_") for word in lines if word.startswith("--")}
    options = SelectorOptions(**{name: value for name, value in namespace.items() if name in own})
    if "output_dir" not in explicit:
        raise OptionError("output_dir: must be given")
    Processes().leave_group_at_exit()
    metrics = run(options, **{n: v for n, v in namespace.items() if n in explicit - own})
    if PartialState().is_main_process:
        print(" ".join(f"{name}={value:.4f}" for name, value in metrics.items()))
    return 0


def _from_file(path: str) -> dict[str, Any]:
    try:
        contents = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise OptionError(f"{path}: is not a readable YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(contents, dict):
        raise OptionError(f"{path}: must hold options, one a line: name: value")
    return contents


def _as_words(given: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
