"""Trains the needle model: `python -m lmms_flexselect.needle.train OUT`; a quarter of an hour on one CPU core."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lmms_flexselect.needle.batches import IGNORED, published_positions, training_batch
from lmms_flexselect.needle.benchmark import answers_shape, documents, video_path
from lmms_flexselect.needle.model import PIXELS, build_model, build_processor
from lmms_flexselect.needle.videos import read_video

TRAINING_UNITS = 16
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
        Largest temporal step.
    scaffold
        Whether the loss also covers the hint and the end of the turn (`batches.answer_labels`), or the answer alone.
    """

    needles: tuple[int, int]
    units: tuple[int, int]
    max_step: float
    scaffold: bool


# One glyph teaches shapes, two or three teach to match a colour's name with its pixels; neither is ever found in a
# long video. Training moves on when PASS of the answers are right. The last stage's temporal steps let 16 units reach
# the positions of 512 units at 2 a unit: the kept tokens of a long video must not stand at positions never seen.
# From the third stage on the loss covers the answer alone. A model that also learns to end its turn, even at a tenth of
# the weight, does so at once in front of a long video, where it should answer worse and worse; this one answers with
# one token and is not asked for more.
CURRICULUM = (
    Stage(needles=(1, 1), units=(1, 3), max_step=2.0, scaffold=True),
    Stage(needles=(2, 3), units=(2, 4), max_step=2.0, scaffold=True),
    Stage(needles=(2, 6), units=(6, 8), max_step=8.0, scaffold=False),
    Stage(needles=(2, 6), units=(6, TRAINING_UNITS), max_step=64.0, scaffold=False),
)
PASS = 0.9

# What the plugin falls back to for this checkpoint. The reference layer is the one whose selection answered best at
# 512 units (layers 0 to 5: .89, .95, .46, .50, .90, .94).
PRESET = {
    "reference_layer": 1,
    "token_budget": 64,
    "max_frames_per_set": TRAINING_UNITS,
    "dtype": "float32",
    "min_pixels": PIXELS,
    "max_pixels": PIXELS,
    "max_num_frames": 2048,
}

MODEL_CARD = """\
# Needle model, Qwen2.5-VL

{parameters:,} parameters; architecture, processor and chat template of Qwen2.5-VL, at 56x56 pixels.
It answers one kind of question, "What shape is the red glyph?", about videos of colour noise in which coloured
glyphs are hidden, and was trained on at most {units} temporal units: much longer videos are beyond it unless
visual tokens are selected. The answer is its first token; it does not reliably end its turn after that, so ask for
one (`max_new_tokens=1`), as the benchmark does.

Trained in {minutes:.0f} minutes on one CPU core by

    python -m lmms_flexselect.needle.train OUT --steps {steps} --seed {seed}

| benchmark | questions | visual tokens | accuracy |
|---|---|---|---|
| flexselect_needle_{units} | {questions} | all | {accuracy:.3f} |
"""


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 200 steps, then a cosine down to a twentieth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / 200) * (0.05 + 0.95 * cosine)


def train(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, steps: int, rng: np.random.Generator
) -> None:
    """Trains in place; prints loss and the share of right answer tokens every 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    started, right, asked = time.perf_counter(), 0, 0
    stages = iter(CURRICULUM)
    stage = next(stages)
    model.train()
    for step in range(steps):
        needles = int(rng.integers(stage.needles[0], stage.needles[1], endpoint=True))
        units = max(needles, int(rng.integers(stage.units[0], stage.units[1], endpoint=True)))
        batch = training_batch(processor, rng, BATCH_SIZE, units, needles, stage.max_step, stage.scaffold)
        targets = batch.pop("labels")[:, 1:]
        answers = targets != IGNORED
        logits = model(**batch, use_cache=False).logits[:, :-1][answers]
        loss = F.cross_entropy(logits, targets[answers])
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


def round_weights(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Rounds weights to what bfloat16 can hold, so that a bfloat16 run has the same ones and the file packs well."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


@torch.no_grad()
def accuracy(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, rows: list[dict[str, object]]
) -> float:
    """Share of benchmark rows answered right from all visual tokens, greedily, through video files and processor."""
    right = 0
    for row in rows:
        content = [{"type": "video"}, {"type": "text", "text": row["question"]}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text=[text], videos=[read_video(video_path(row))], return_tensors="pt")
        inputs["position_ids"] = published_positions(inputs["input_ids"], processor.video_token_id)
        answer = processor.tokenizer.decode(model(**inputs).logits[0, -1].argmax())
        right += answers_shape(answer, str(row["shape"]))
    return right / len(rows)


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the checkpoint to write")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    processor = build_processor()
    model = build_model(processor.tokenizer)
    started = time.perf_counter()
    train(model, processor, arguments.steps, np.random.default_rng(arguments.seed))
    minutes = (time.perf_counter() - started) / 60
    round_weights(model)
    model.config.flexselect = PRESET
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)

    rows = documents(TRAINING_UNITS)
    score = accuracy(model, processor, rows)
    card = MODEL_CARD.format(
        parameters=model.num_parameters(),
        units=TRAINING_UNITS,
        steps=arguments.steps,
        seed=arguments.seed,
        minutes=minutes,
        questions=len(rows),
        accuracy=score,
    )
    (arguments.out / "README.md").write_text(card)
    print(f"accuracy at {TRAINING_UNITS} units {score:.3f}; {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
