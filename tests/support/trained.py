"""Needle models as teachers small enough to train a student of in seconds."""

from __future__ import annotations

import torch

from lmms_flexselect.families.reader import load_reader
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.selectors import DECODER, NeedleExamples, inputs_of
from lmms_flexselect.training.objective import Teacher
from lmms_flexselect.training.student import new_selector

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class Trained:
    """A needle model as a teacher, its reader, and students and examples for it."""

    def __init__(self, family: str) -> None:
        self.name, self.folder = family, str(CHECKPOINTS / family)
        self.reader = load_reader(family, self.folder, torch.float32, 16, None)
        self.family = self.reader.family
        self.teacher = Teacher(self.family, 1)

    def student(self, seed: int = 0, **sizes: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        words = {**DECODER, "vocab_size": self.family.model.get_input_embeddings().num_embeddings}
        return new_selector(self.family.tower, None, {**SMALL, **sizes}, words)

    def examples(self, count: int, seed: int = 1) -> NeedleExamples:
        return NeedleExamples(inputs_of(self.reader), count, seed)
