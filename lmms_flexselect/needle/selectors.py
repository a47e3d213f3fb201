"""Trains a needle model's FlexSelect-Lite selector: a student a quarter of its size, on videos of training length.

python -m lmms_flexselect.needle.selectors OUT --family NAME
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lmms_flexselect.loading import raw_config
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.batches import TRAINING_UNITS, imitate_codec
from lmms_flexselect.needle.benchmark import question
from lmms_flexselect.needle.tokenizer import MAX_POSITIONS
from lmms_flexselect.needle.train import needle_class, needle_reader, parse_arguments
from lmms_flexselect.needle.videos import NeedleVideo
from lmms_flexselect.training.fit import fit, training_arguments
from lmms_flexselect.training.objective import Example, Teacher
from lmms_flexselect.training.student import new_selector

HELD_OUT = 96
# Needles a video: many, so that telling their colours apart is much of the order; and one, as in a set of a long video.
NEEDLES = (1, 6, 7, 8)


# Ranks alone hardly tell how far the question's needle stands out from the others.
LOSS = "spearman_l2"
# Of the decoders with random weights, the tests' too; the published selectors' decoder brings them along.
DECODER = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.08,  # as for the needle models
}

MODEL_CARD = """\
# FlexSelect-Lite selector of the needle {family}

{parameters:,} parameters, {share:.0%} of its teacher's. Trained to rank as the teacher's layer {layer} does, on
{steps:,} x {batch} questions about videos of 8 to {units} temporal units, in {minutes:.0f} minutes on one CPU core by

    python -m lmms_flexselect.needle.selectors OUT --family {family} --steps {steps} --seed {seed}

On {held_out} held-out questions: rank correlation {correlation:.3f} with the teacher, and {overlap:.3f} of the
teacher's first sixteenth of the tokens among the selector's.
"""


class NeedleExamples(Dataset):
    """Questions about needle videos, one a video, drawn when they are needed.

    Parameters
    ----------
    inputs
        Makes a family's inputs of one frame a unit ``(units, 56, 56, 3)`` uint8, and a question.
    count
        How many.
    seed
        Of all of them.
    """

    def __init__(self, inputs: Callable[[Tensor, str], Mapping[str, Any]], count: int, seed: int) -> None:
        self._inputs, self._count, self._seed = inputs, count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self._seed, index])
        units = int(rng.integers(8, TRAINING_UNITS, endpoint=True))
        video = NeedleVideo.draw(int(rng.integers(2**31)), units, int(rng.choice(NEEDLES)))
        needle = video.needles[rng.integers(len(video.needles))]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        frames = torch.from_numpy(video.unit_frames()).permute(0, 3, 1, 2).float()
        rough = imitate_codec(frames, generator).permute(0, 2, 3, 1).byte()
        return Example(f"needle {self._seed}/{index}", self._inputs(rough, question(needle.colour)))


def inputs_of(reader: Any) -> Callable[[Tensor, str], Mapping[str, Any]]:
    """How a family's reader takes one frame a unit, in no file."""
    return lambda frames, text: reader.of_frames(frames.repeat_interleave(reader.frames_per_unit, 0), text)


def train(family: str, out: Path, steps: int | None, batch: int, seed: int, **arguments: Any) -> dict[str, float]:
    """Train, and write the selector with its card to `out`; `steps` are the recipe's if None."""
    recipe = needle_class(family).selector_recipe
    steps = steps or recipe.steps
    folder = str(CHECKPOINTS / family)
    config = raw_config(folder)
    reader = needle_reader(family)
    teacher = Teacher(reader.family, config["flexselect"]["reference_layer"])
    torch.manual_seed(seed)
    vocabulary = reader.family.model.get_input_embeddings().num_embeddings
    student = new_selector(
        reader.family.tower,
        None if recipe.sizes else folder,
        {**(recipe.sizes or {}), "num_hidden_layers": recipe.layers},
        {**DECODER, "vocab_size": vocabulary},
    )
    inputs = inputs_of(reader)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        metrics = fit(
            student,
            teacher,
            NeedleExamples(inputs, steps * batch, seed + 1),
            NeedleExamples(inputs, HELD_OUT, seed),
            training_arguments(
                work,
                **{
                    "max_steps": steps,
                    "per_device_train_batch_size": batch,
                    "learning_rate": recipe.learning_rate,
                    "warmup_steps": 100,
                    "eval_strategy": "no",
                    "save_strategy": "no",
                    "logging_steps": 50,
                    "seed": seed,
                    **arguments,
                },
            ),
            loss=LOSS,
            about={"teacher": f"needle/{family}"},
            tokenizer=reader.tokenizer,
        )
        out.mkdir(parents=True, exist_ok=True)
        for file in Path(work).iterdir():
            if file.is_file() and file.name != "teacher.json" and "training" not in file.name:
                shutil.copy(file, out)
    minutes = (time.process_time() - started) / 60
    card = MODEL_CARD.format(
        family=family,
        parameters=sum(p.numel() for p in student.parameters()),
        share=sum(p.numel() for p in student.parameters()) / reader.family.model.num_parameters(),
        layer=teacher.layer,
        steps=steps,
        batch=batch,
        units=TRAINING_UNITS,
        minutes=minutes,
        seed=seed,
        held_out=HELD_OUT,
        correlation=metrics["eval_rank_correlation"],
        overlap=metrics["eval_top_k_overlap"],
    )
    (out / "README.md").write_text(card)
    return metrics


def main() -> None:
    """Command line entry point."""
    arguments = parse_arguments(__doc__, None, batch=8)
    metrics = train(arguments.family, arguments.out, arguments.steps, arguments.batch, arguments.seed)
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
