"""Rank supervision: how far a student's order of visual tokens is from its teacher's (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.selectors import ReferenceLayer
from lmms_flexselect.training.losses import rank_correlation, top_k_overlap

_OVERLAP_SHARE = 1 / 16  # of a video's tokens: what the paper keeps of a full-length one


@dataclass
class Example:
    """One video with its query.

    Attributes
    ----------
    name
        For messages, and for the teacher's cached scores.
    inputs
        What the family's `prompts` takes, a batch of one.
    scores
        The teacher's, ``(visual,)`` float32, if they are known already.
    """

    name: str
    inputs: Mapping[str, Any]
    scores: Tensor | None = None


@dataclass
class Teacher:
    """The VideoLLM, and how its ranking is read.

    Attributes
    ----------
    family
        Reads the model; its `selector` is the student.
    layer
        Reference layer, 0-based.
    reduction
        ``"max"`` or ``"mean"`` over heads and text tokens, for teacher and student.
    """

    family: Any
    layer: int
    reduction: str = "max"

    def prompt(self, example: Example) -> VideoPrompt:
        """The example as both models read it; gradients reach the student's embeddings."""
        device = self.family.model.device
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in example.inputs.items()}
        (prompt,) = self.family.prompts(inputs)
        if not bool(prompt.visual.any()):
            raise FlexSelectError(f"{example.name}: has no visual tokens")
        return prompt

    @torch.no_grad()
    def scores(self, prompt: VideoPrompt) -> Tensor:
        """Relevance of the first video's tokens as one frame set: ``(visual,)`` float32."""
        columns = (prompt.video == 0).nonzero().squeeze(-1)
        whole = [torch.arange(len(columns))]
        return self.family.reference_layer(self.layer, self.reduction).scores(prompt, columns, whole)


class RankSupervision(nn.Module):
    """The student, with the loss as its forward pass: what transformers' Trainer trains.

    Parameters
    ----------
    student
        A selector's module.
    teacher
        Kept out of the module's parameters, so that nothing wraps, trains or saves it.
    loss
        ``loss(student_scores, teacher_scores)``, see `lmms_flexselect.training.losses`.
    remember
        Called with an example's name and its teacher's scores once these are computed.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher,
        loss: Callable[[Tensor, Tensor], Tensor],
        remember: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self._loss = loss
        self._remember = remember
        teacher.family.model.requires_grad_(False)
        teacher.family.selector = student

    @property
    def teacher(self) -> Teacher:
        """The VideoLLM."""
        return self._teacher[0]

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Of all layers but the last: that one is left by an exception once its queries and keys are there."""
        self.student.decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})
        self.student.decoder.layers[-1].gradient_checkpointing = False

    def forward(self, examples: list[Example]) -> dict[str, Tensor]:
        """Means over the examples.

        Returns
        -------
        dict
            ``loss``; ``rank_correlation`` and ``top_k_overlap`` with the teacher, without gradients; ``examples``.

        Raises
        ------
        FlexSelectError
            If a loss is not a number, naming the example.
        """
        losses, correlations, overlaps = [], [], []
        for example in examples:
            prompt = self.teacher.prompt(example)
            wanted = self._wanted(example, prompt)
            got = self.scores(prompt)
            wanted = wanted.to(got.device)
            if wanted.shape != got.shape:
                raise FlexSelectError(
                    f"{example.name}: the teacher's {len(wanted)} cached scores do not fit its {len(got)} visual tokens"
                )
            loss = self._loss(got, wanted)
            if not bool(torch.isfinite(loss)):
                raise FlexSelectError(f"{example.name}: the loss is {float(loss)}; nothing was learned from it")
            losses.append(loss)
            keep = max(1, round(_OVERLAP_SHARE * len(got)))
            correlations.append(rank_correlation(got.detach(), wanted))
            overlaps.append(top_k_overlap(got.detach(), wanted, keep))
        measured = {"rank_correlation": correlations, "top_k_overlap": overlaps}
        means = {name: torch.tensor([float(v) for v in values]).mean() for name, values in measured.items()}
        return {"loss": torch.stack(losses).mean(), "examples": torch.tensor(len(examples)), **means}

    def _wanted(self, example: Example, prompt: VideoPrompt) -> Tensor:
        if example.scores is not None:
            return example.scores
        scores = self.teacher.scores(prompt)
        if self._remember is not None:
            self._remember(example.name, scores)
        return scores

    def scores(self, prompt: VideoPrompt) -> Tensor:
        """The student's relevance scores of the first video's tokens: ``(visual,)`` float32, with gradients."""
        assert prompt.scorer is not None
        columns = (prompt.scorer.video == 0).nonzero().squeeze(-1)
        last = len(self.student.decoder.layers) - 1
        return ReferenceLayer(self.student.decoder, last, self.teacher.reduction).relevance(prompt.scorer, columns)
