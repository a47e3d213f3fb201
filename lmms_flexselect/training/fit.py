"""One training run: from a student and its teacher to a folder that is a ``selector_path``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.lite.writing import write_selector
from lmms_flexselect.training.cache import ABOUT, ScoreCache, same_teacher
from lmms_flexselect.training.losses import LOSSES
from lmms_flexselect.training.objective import RankSupervision, Teacher
from lmms_flexselect.training.trainer import (
    FIXED,
    SelectorTrainer,
    TrainingArguments,
    checkpoint_folders,
    default_arguments,
    drop_unfinished,
    whole_checkpoints,
)


def training_arguments(output_dir: str | Path, **given: Any) -> TrainingArguments:
    """transformers' `TrainingArguments`: the paper's recipe, then what is given."""
    known = {f.name for f in fields(TrainingArguments)}
    for name in given:
        if name not in known:
            raise OptionError(f"unknown training argument {name}: transformers' TrainingArguments has no such")
    return TrainingArguments(output_dir=str(output_dir), **{**default_arguments(), **given, **FIXED})


def fit(
    student: Any,
    teacher: Teacher,
    train_set: Any,
    held_out: Any,
    arguments: TrainingArguments,
    loss: str = "spearman",
    about: Mapping[str, Any] | None = None,
    cache: ScoreCache | None = None,
    tokenizer: Any = None,
) -> dict[str, float]:
    """Train, evaluate on what was held out, and write the selector.

    A run that was stopped, at whatever moment, goes on from its last whole checkpoint when it is started again with
    the same output folder.

    Parameters
    ----------
    student
        From `new_selector`; changed in place.
    teacher
        Its family's `selector` becomes the student.
    train_set, held_out
        Data sets of `Example`s.
    arguments
        From `training_arguments`.
    loss
        A name in `LOSSES`.
    about
        What the teacher's scores depend on; a folder begun with something else is refused.
    cache
        Where the teacher's scores are kept.
    tokenizer
        The selector's own, where it has one.

    Returns
    -------
    dict
        ``eval_loss``, ``eval_rank_correlation``, ``eval_top_k_overlap`` of the held-out examples.

    Raises
    ------
    OptionError
        If the output folder was begun with another teacher, or the loss is not known.
    FlexSelectError
        If a loss is not a number, or a checkpoint cannot be written.
    """
    if loss not in LOSSES:
        raise OptionError(f"loss={loss}: must be one of {', '.join(LOSSES)}")
    out = Path(arguments.output_dir)
    if checkpoint_folders(out) and not (out / ABOUT).exists():
        raise OptionError(f"{out}: holds the checkpoints of another program; give another folder")
    about = {**(about or {}), "reference_layer": teacher.layer, "reduction": teacher.reduction}
    same_teacher(out, about)
    tower = teacher.family.tower

    def write(folder: str, weights: Mapping[str, Tensor]) -> None:
        write_selector(folder, student.config, weights, tower, teacher.reduction, tokenizer, teacher=about, loss=loss)

    module = RankSupervision(student, teacher, LOSSES[loss], None if cache is None else cache.put)
    trainer = SelectorTrainer(model=module, args=arguments, train_dataset=train_set, eval_dataset=held_out, write=write)
    last = _last_checkpoint(out, trainer.accelerator.wait_for_everyone, arguments.should_save)
    if last is not None:
        logger.info(f"going on from {last}")
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    metrics = trainer.evaluate()
    trainer.save_final(torch.bfloat16)  # as the published ones; checkpoints keep what training goes on with
    return metrics


def _last_checkpoint(out: Path, wait: Callable[[], None], main: bool) -> Path | None:
    if main:
        drop_unfinished(out)
    wait()
    whole = whole_checkpoints(out)
    return whole[-1] if whole else None
