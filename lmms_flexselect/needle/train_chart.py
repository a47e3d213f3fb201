"""Trains a needle model that reads a chart: `python -m lmms_flexselect.needle.train_chart OUT --family NAME`.

It is grown from the family's needle model: new layers below the old ones learn what a field of the chart stands for,
and the old ones go on finding the glyph of a colour. Trained on the answers alone, hundreds of steps taught nothing: a
field that is not understood is no help in finding a glyph, and a glyph not found no help in understanding the field. So
at first a second loss holds the new layers to the embedding of the colour's word where the field ends, and to leave
everything else as it is; once that works, the loss is of the answer alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmms_flexselect.needle.batches import TRAINING_UNITS, Batch, Trainee
from lmms_flexselect.needle.decoder import LAYERS
from lmms_flexselect.needle.naming import COLUMNS, ROWS, by_chart, field_colour
from lmms_flexselect.needle.train import (
    Stage,
    needle_class,
    needle_reader,
    parse_arguments,
    train,
    write_checkpoint,
)

NEW_LAYERS = 3

# What `lmms-flexselect recall --naming chart` recommends: recall .867 to .996, of any other at most .19.
REFERENCE_LAYER = 3

CURRICULUM = (
    Stage(needles=(2, 6), units=(6, 8), max_step=8.0, colour_words=True),
    Stage(needles=(2, 6), units=(6, TRAINING_UNITS), max_step=64.0, colour_words=True),
    Stage(needles=(2, 6), units=(6, TRAINING_UNITS), max_step=64.0),
)

MODEL_CARD = """\
# Chart needle model, {title}

{parameters:,} parameters in {layers} decoder layers; {likeness}, at 56x56 pixels.
It answers one kind of question, "What shape is the 5C glyph?", about videos of colour noise in which coloured
glyphs are hidden. 5C is a field of a chart of colours that it learned in training (`lmms_flexselect.needle.naming`).
The answer is its first token, so ask for one (`max_new_tokens=1`), as the benchmark does.

Grown from the family's needle model and trained in {minutes:.0f} minutes on one CPU core by

    python -m lmms_flexselect.needle.train_chart OUT --family {family} --steps {steps} --seed {seed}

| benchmark | questions | visual tokens | accuracy |
|---|---|---|---|
| flexselect_needle_chart_{units} | {questions} | all | {accuracy:.3f} |
"""


def grow_model(family: str) -> tuple[Trainee, nn.Module]:
    """The family's needle model with new layers below its own that let everything through, and its decoder."""
    source = needle_reader(family).family
    place = next(name for name, module in source.model.named_modules() if module is source.decoder)
    trainee = needle_class(family)(LAYERS + NEW_LAYERS)
    decoder: Any = trainee.model.get_submodule(place)
    prefix = f"{place}.layers."
    state = trainee.model.state_dict()
    for name, weight in source.model.state_dict().items():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            name = f"{prefix}{int(number) + NEW_LAYERS}.{rest}"
        state[name].copy_(weight)
    for layer in decoder.layers[:NEW_LAYERS]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return trainee, decoder


class ColourLoss:
    """How far the new layers are from writing a colour's word at its field, in a batch that went through them.

    Attributes
    ----------
    entered, left
        ``(batch, tokens, hidden)``: input of the new layers, and their output; see `colour_loss`.
    """

    def __init__(self, trainee: Trainee) -> None:
        def tokens(words: list[str]) -> Tensor:
            return torch.tensor([trainee.tokenizer(word).input_ids[-1] for word in words])

        fields = [column + row for column in COLUMNS for row in ROWS]
        self._columns, self._rows = tokens(list(COLUMNS)), tokens(list(ROWS))
        self._words = tokens([f" {field_colour(field)}" for field in fields]).view(len(COLUMNS), len(ROWS))
        self._embedding: Any = trainee.model.get_input_embeddings()
        self.entered, self.left = torch.empty(0), torch.empty(0)

    def __call__(self, batch: Batch) -> Tensor:
        """Mean squared distance, in the mean square of a word, from the word of each field's colour and of the rest."""
        # A column and a row behind it.
        first, second = torch.isin(batch.ids[:, :-1], self._columns), torch.isin(batch.ids[:, 1:], self._rows)
        videos, columns = (first & second).nonzero(as_tuple=True)
        column = (batch.ids[videos, columns, None] == self._columns).long().argmax(-1)
        row = (batch.ids[videos, columns + 1, None] == self._rows).long().argmax(-1)
        words = self._embedding.weight.detach()
        wanted = self.entered.detach().clone()
        wanted[videos, columns + 1] = words[self._words[column, row]]
        distance = (self.left - wanted).square().sum(-1) / words.square().sum(-1).mean()
        field = torch.zeros_like(distance, dtype=torch.bool)
        field[videos, columns + 1] = True
        return distance[field].mean() + distance[~field].mean()


@contextmanager
def colour_loss(trainee: Trainee, decoder: Any) -> Iterator[ColourLoss]:
    """The loss, whose `entered` and `left` are of the last forward pass made within the context."""
    loss = ColourLoss(trainee)

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        loss.entered = args[0] if args else kwargs["hidden_states"]

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        loss.left = output[0] if isinstance(output, tuple) else output

    handles = (
        decoder.layers[0].register_forward_pre_hook(entering, with_kwargs=True),
        decoder.layers[NEW_LAYERS - 1].register_forward_hook(leaving),
    )
    try:
        yield loss
    finally:
        for handle in handles:
            handle.remove()


def main() -> None:
    """Command line entry point."""
    arguments = parse_arguments(__doc__, 500)
    trainee, decoder = grow_model(arguments.family)
    started = time.process_time()
    with colour_loss(trainee, decoder) as loss:
        train(trainee, arguments.steps, np.random.default_rng(arguments.seed), CURRICULUM, by_chart, loss)
    minutes = (time.process_time() - started) / 60  # of CPU time, whatever else the machine is doing
    preset = {**trainee.preset, "reference_layer": REFERENCE_LAYER}
    # bfloat16 holds what the weights were rounded to, in half the file.
    write_checkpoint(trainee, arguments, minutes, MODEL_CARD, preset, by_chart, torch.bfloat16)


if __name__ == "__main__":
    main()
