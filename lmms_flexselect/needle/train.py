"""Trains a needle model: `python -m lmms_flexselect.needle.train OUT --family NAME`; ten minutes on one CPU core."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmms_flexselect.families.qwen3_vl.needle import NeedleQwen3VL
from lmms_flexselect.needle.batches import IGNORED, TRAINING_UNITS, Batch, Trainee, training_batch
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path
from lmms_flexselect.needle.internvl import NeedleInternVL
from lmms_flexselect.needle.llava_vid import NeedleLlavaVideo
from lmms_flexselect.needle.naming import Naming, by_colour
from lmms_flexselect.needle.qwen2_5_vl import NeedleQwen2_5_VL

# By the names that lmms-eval has for them.
FAMILIES: dict[str, type[Trainee]] = {
    "qwen2_5_vl": NeedleQwen2_5_VL,
    "llava_vid": NeedleLlavaVideo,
    "internvl_hf": NeedleInternVL,
    "qwen3_vl": NeedleQwen3VL,
}

BATCH_SIZE = 24
PEAK_LEARNING_RATE = 1e-3
LOG_EVERY = 50


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    Attributes
    ----------
    needles, units
        Needles in a video and its temporal units, both ends included.
    max_step
        Largest temporal step (`batches.Batch.step`).
    scaffold
        Whether the loss also covers the hint and the end of the turn (`batches.answer_labels`), or the answer alone.
    spoken
        Whether the loss also covers what `train`'s `spoken` says.
    """

    needles: tuple[int, int]
    units: tuple[int, int]
    max_step: float
    scaffold: bool = False
    spoken: bool = False


# One glyph teaches shapes, two or three teach to match a colour's name with its pixels; neither is ever found in a
# long video. Training moves on when PASS of the answers are right. The last stage's temporal steps let 16 units reach
# the positions of 512 units at 2 a unit: the kept tokens of a long video must not stand at positions never seen (where
# they are renumbered they never do).
# From the third stage on the loss covers the answer alone. A model that also learns to end its turn, even at a tenth of
# the weight, does so at once in front of a long video, where it should answer worse and worse; this one answers with
# one token and is not asked for more.
CURRICULUM = (
    Stage(needles=(1, 1), units=(1, 3), max_step=2.0, scaffold=True),
    Stage(needles=(2, 3), units=(2, 4), max_step=2.0, scaffold=True),
    Stage(needles=(2, 6), units=(6, 8), max_step=8.0),
    Stage(needles=(2, 6), units=(6, TRAINING_UNITS), max_step=64.0),
)
PASS = 0.9

MODEL_CARD = """\
# Needle model, {title}

{parameters:,} parameters; {likeness}, at 56x56 pixels.
It answers one kind of question, "What shape is the red glyph?", about videos of colour noise in which coloured
glyphs are hidden, and was trained on at most {units} temporal units: much longer videos are beyond it unless
visual tokens are selected. The answer is its first token; it does not reliably end its turn after that, so ask for
one (`max_new_tokens=1`), as the benchmark does.

Trained in {minutes:.0f} minutes on one CPU core by

    python -m lmms_flexselect.needle.train OUT --family {family} --steps {steps} --seed {seed}

| benchmark | questions | visual tokens | accuracy |
|---|---|---|---|
| flexselect_needle_{units} | {questions} | all | {accuracy:.3f} |
"""


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 200 steps, then a cosine down to a twentieth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / 200) * (0.05 + 0.95 * cosine)


def train(
    trainee: Trainee,
    steps: int,
    rng: np.random.Generator,
    curriculum: Sequence[Stage] = CURRICULUM,
    naming: Naming = by_colour,
    spoken: Callable[[Batch], Tensor] | None = None,
) -> None:
    """Trains in place; prints loss and the share of right answer tokens every 50 steps.

    Parameters
    ----------
    trainee
        Its model is changed.
    steps
        How many, of `BATCH_SIZE` videos each.
    rng
        Of videos and questions.
    curriculum
        One stage after the other.
    naming
        What questions call a colour.
    spoken
        Of a batch that went through the model: a further loss, in stages that have it.
    """
    model = trainee.model
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    started, right, asked = time.perf_counter(), 0, 0
    stages = iter(curriculum)
    stage = next(stages)
    model.train()
    for step in range(steps):
        needles = int(rng.integers(stage.needles[0], stage.needles[1], endpoint=True))
        units = max(needles, int(rng.integers(stage.units[0], stage.units[1], endpoint=True)))
        batch = training_batch(trainee, rng, BATCH_SIZE, units, needles, stage.max_step, stage.scaffold, naming)
        targets = batch.labels[:, 1:]
        answers = targets != IGNORED
        logits = model(**trainee.inputs(batch), use_cache=False).logits[:, :-1][answers]
        loss = F.cross_entropy(logits, targets[answers])
        if stage.spoken and spoken is not None:
            loss = loss + spoken(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        hits = logits.argmax(-1) == targets[answers]
        hits = hits[1::3] if stage.scaffold else hits  # hint, answer, end of the turn; or answers alone
        right, asked = right + int(hits.sum()), asked + len(hits)
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.perf_counter() - started
            print(
                f"step {step + 1} loss {loss.item():.4f} accuracy {right / asked:.3f} {seconds:.0f} s {stage}",
                flush=True,
            )
            if right / asked >= PASS:
                stage = next(stages, stage)
            right, asked = 0, 0
    model.eval()


def round_weights(model: nn.Module) -> None:
    """Rounds weights to what bfloat16 can hold, so that a bfloat16 run has the same ones and the file packs well."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


@torch.no_grad()
def accuracy(trainee: Trainee, rows: list[dict[str, Any]]) -> float:
    """Share of benchmark rows answered right from all visual tokens, greedily, from video files."""
    answers = [trainee.answer(video_path(row), row["question"]) for row in rows]
    return sum(answers_shape(answer, row["shape"]) for answer, row in zip(answers, rows, strict=True)) / len(rows)


def asked(description: str | None, family: str, steps: int) -> argparse.Namespace:
    """What a trainer's command line says, its threads and its seed set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path, help="folder of the checkpoint to write")
    parser.add_argument("--family", choices=FAMILIES, default=family)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    return arguments


def finish(
    trainee: Trainee,
    arguments: argparse.Namespace,
    minutes: float,
    model_card: str,
    preset: dict[str, Any],
    naming: Naming = by_colour,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a trained model, and a card with its accuracy at training length.

    Parameters
    ----------
    trainee
        Its weights are rounded.
    arguments
        From `asked`.
    minutes
        That training took, of CPU time.
    model_card
        With a placeholder for each number.
    preset
        What the plugin falls back to for the checkpoint.
    naming
        What the questions call a colour.
    dtype
        Of the file.
    """
    round_weights(trainee.model)
    trainee.model.config.flexselect = preset
    trainee.model.to(dtype)
    trainee.save(arguments.out)
    trainee.model.float()

    rows = documents(TRAINING_UNITS, naming=naming)
    score = accuracy(trainee, rows)
    card = model_card.format(
        title=trainee.title,
        likeness=trainee.likeness,
        layers=trainee.model.config.get_text_config().num_hidden_layers,
        parameters=trainee.model.num_parameters(),
        family=arguments.family,
        units=TRAINING_UNITS,
        steps=arguments.steps,
        seed=arguments.seed,
        minutes=minutes,
        questions=len(rows),
        accuracy=score,
    )
    (arguments.out / "README.md").write_text(card)
    print(f"accuracy at {TRAINING_UNITS} units {score:.3f}; {minutes:.1f} minutes")


def main() -> None:
    """Command line entry point."""
    arguments = asked(__doc__, "qwen2_5_vl", 900)
    trainee = FAMILIES[arguments.family]()
    started = time.process_time()
    train(trainee, arguments.steps, np.random.default_rng(arguments.seed))
    minutes = (time.process_time() - started) / 60  # of CPU time, whatever else the machine is doing
    finish(trainee, arguments, minutes, MODEL_CARD, trainee.preset)


if __name__ == "__main__":
    main()
