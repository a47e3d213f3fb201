"""Training batches, whatever the family: videos, conversations about them, and which of their tokens are to be learnt.

Pixels are roughened in memory as a codec would do it, instead of a video file being written for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmms_flexselect.needle.benchmark import question
from lmms_flexselect.needle.decoder import LAYERS
from lmms_flexselect.needle.naming import Naming, by_colour
from lmms_flexselect.needle.videos import QUADRANTS, NeedleVideo

TRAINING_UNITS = 16  # the longest video of any training batch
IGNORED = -100

Chat = list[tuple[str, str]]
"""Questions and their answers."""


@dataclass
class Batch:
    """One training step's data.

    Attributes
    ----------
    frames
        ``(batch, units, 3, 56, 56)`` float32 in 0..255: one frame a temporal unit.
    needles
        ``(batch, units, 4)`` bool: the quadrants that hold one.
    ids, labels
        ``(batch, tokens)`` int64, the labels `IGNORED` where nothing is to be predicted.
    step
        Temporal distance of two units, for families whose positions have one.
    """

    frames: Tensor
    needles: Tensor
    ids: Tensor
    labels: Tensor
    step: float


@dataclass(frozen=True)
class SelectorRecipe:
    """How a needle model's FlexSelect-Lite selector is made.

    Attributes
    ----------
    sizes
        Of a decoder with random weights; None for the first `layers` of the teacher's own.
    layers
        How many; the last one scores.
    learning_rate, steps
        Of its training.
    """

    sizes: Mapping[str, int] | None = None
    layers: int = 1
    learning_rate: float = 1e-3
    steps: int = 1000


class Trainee(Protocol):
    """What differs between families: a model with random weights, and what goes into it and comes out.

    A family's `FamilySpec` names its class (``needle``).

    Attributes
    ----------
    likeness
        For the model card: what the model has of the family.
    preset
        What the plugin falls back to for the checkpoint, stored in its ``config.json``.
    selector_recipe
        How its FlexSelect-Lite selector is trained.
    model, tokenizer
        With random weights, and the tokenizer of its prompts.
    processor
        What is saved beside the model, as a published checkpoint has it: the tokenizer alone, or with more.
    """

    likeness: str
    preset: dict[str, Any]
    selector_recipe: SelectorRecipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    processor: Any

    def __init__(self, layers: int = LAYERS) -> None: ...

    def token_ids(self, chats: list[Chat], units: int) -> Tensor:
        """Token ids ``(batch, tokens)`` of equally long chats, each with a video of `units` units in its first turn.

        Every visual token has its placeholder.
        """
        ...

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model's forward pass takes."""
        ...

    def answer(self, path: Path, question: str) -> str:
        """The first token of the answer to a question about a video file, from all its visual tokens."""
        ...


def turns_of(chat: Chat, mark: str) -> list[tuple[str, str | None]]:
    """The turns of a chat for `chatml`, `mark` on a line before the first question; None for an answer yet to give."""
    turns: list[tuple[str, str | None]] = []
    for text, answer in chat:
        turns += [("user", text if turns else f"{mark}\n{text}"), ("assistant", answer or None)]
    return turns


def messages(chat: Chat) -> list[dict[str, object]]:
    """A chat as the chat template wants it, the video in its first turn; an empty answer is one still to be given."""
    turns: list[dict[str, object]] = []
    for text, answer in chat:
        content: list[dict[str, str]] = [] if turns else [{"type": "video"}]
        content.append({"type": "text", "text": text})
        turns.append({"role": "user", "content": content})
        if answer:
            turns.append({"role": "assistant", "content": answer})
    return turns


def shown_at_random(own: Tensor) -> Tensor:
    """Which visual tokens a training batch shows, as behind a selection: a random share of each video's.

    `own` and what is returned are bool and have a row ``(batch, …)`` a video; a needle's own tokens always show.
    """
    share = torch.rand(len(own), *[1] * (own.ndim - 1))
    return (torch.rand(own.shape) < share) | own


def answer_labels(ids: Tensor, tokenizer: PreTrainedTokenizerBase, scaffold: bool) -> Tensor:
    """Labels ``(batch, tokens)``: the assistant's shape word; with a scaffold also a hint and the end of its turn.

    The hint asks for the shape already where the user's colour word stands. Seven tokens later, where the answer
    belongs, colours are too far from the loss for so small a model to learn to match them in reasonable time.
    """
    start, assistant = tokenizer.convert_tokens_to_ids(["<|im_start|>", "assistant"])
    # A turn reads `red glyph ? <|im_end|> \n <|im_start|> assistant \n ring <|im_end|>`; its anchor is `<|im_start|>`.
    rows, anchors = ((ids[:, :-1] == start) & (ids[:, 1:] == assistant)).nonzero(as_tuple=True)
    labels = torch.full_like(ids, IGNORED)
    shapes = ids[rows, anchors + 3]
    labels[rows, anchors + 3] = shapes
    if scaffold:
        labels[rows, anchors - 4] = shapes
        labels[rows, anchors + 4] = ids[rows, anchors + 4]
    return labels


def imitate_codec(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs, shifts and roughens pixels (frames, 3, 56, 56) in 0..255, a little more than H.264 does.

    Encoding each training video would cost as much time as the training step itself.
    """
    blur, noise, shift = torch.rand(3, generator=generator).tolist()
    smooth = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    frames = frames.lerp(smooth, 0.6 * blur) + 6 * (shift - 0.5)
    frames = frames + 8 * noise * torch.randn(frames.shape, generator=generator)
    return frames.round().clamp(0, 255)


def training_batch(
    trainee: Trainee,
    rng: np.random.Generator,
    size: int,
    units: int,
    needles: int,
    max_step: float,
    scaffold: bool,
    naming: Naming = by_colour,
) -> Batch:
    """Draws `size` new videos with a question about every needle: the more answers, the denser the loss.

    Temporal steps go log-uniformly from 0.5 to `max_step`.
    """
    videos = [NeedleVideo.draw(int(seed), units, needles) for seed in rng.integers(2**62, size=size)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pixels = torch.from_numpy(np.concatenate([video.unit_frames() for video in videos])).permute(0, 3, 1, 2).float()
    chats = [[(question(naming(needle.colour, rng)), needle.shape) for needle in video.needles] for video in videos]
    ids = trainee.token_ids(chats, units)
    step = math.exp(rng.uniform(math.log(0.5), math.log(max_step)))
    frames = imitate_codec(pixels, generator).unflatten(0, (size, units))
    needle_at = torch.zeros(size, units, QUADRANTS, dtype=torch.bool)
    for row, video in enumerate(videos):
        for needle in video.needles:
            needle_at[row, needle.unit, needle.quadrant] = True
    return Batch(frames, needle_at, ids, answer_labels(ids, trainee.tokenizer, scaffold), step)
