"""`VideoPrompt`: what the language model is about to read, before and after selection."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lmms_flexselect.runtime.memory import to_device


@dataclass
class VideoPrompt:
    """One sample's prompt, unpadded, with its visual tokens embedded.

    Visual tokens are a mask with a frame number per token, never one slice: there may be text between frames, and more
    than one video. All but `inputs_embeds` lies on the CPU, so that bookkeeping never waits for a GPU.

    Attributes
    ----------
    input_ids
        ``(tokens,)`` int64; visual tokens carry their placeholder's id.
    inputs_embeds
        ``(tokens, hidden)`` in the model's dtype.
    position_ids
        ``(axes, tokens)`` int64, of the whole prompt.
    video
        ``(tokens,)`` int64: which video a visual token belongs to, counted from 0; -1 for everything else.
    frame
        ``(tokens,)`` int64: which frame of its video (the family's unit), counted from 0; -1 for everything else.
    grids
        ``(frames, rows, columns)`` of each video: how its tokens lie, frame by frame, row by row.
    compact_positions
        The family's rule for a *scoring* prompt: given a ``(tokens,)`` bool mask, the ``(axes, kept)`` position ids
        as if the prompt consisted of those tokens alone. None once tokens have been dropped: a shortened prompt
        no longer holds whole frames, so there is nothing to score.
    closes_up
        Whether the tokens that selection keeps are renumbered ``0 .. kept-1`` (one axis), as the authors'
        implementation does for some families; else they stay at the positions they had.
    label
        ``(tokens,)`` int64: the video of whose frame a text token tells (``Frame7: ``), -1 for all others; `frame` has
        the frame's number there too. None where frames have no such text.
    scorer
        The same prompt as a selector with embeddings of its own reads it: the same videos and as many visual tokens
        in the same order, perhaps other text tokens. None without one.
    video_keys
        What each video is known by: equal for equal visual tokens, None where that is not known. Empty if nothing
        else may stand between the video and what is kept of it, an image for instance.
    extras
        What the decoder takes of each token besides its embedding and position, by name: ``(tokens, …)`` each, on any
        device. Empty for most families.
    decoder_arguments
        The decoder's own keyword arguments, made of `extras` with a batch axis in front, ``(batch, tokens, …)``. If
        not given, the decoder takes them as they are.
    """

    input_ids: Tensor
    inputs_embeds: Tensor
    position_ids: Tensor
    video: Tensor
    frame: Tensor
    grids: list[tuple[int, int, int]]
    compact_positions: Callable[[Tensor], Tensor] | None
    closes_up: bool = False
    label: Tensor | None = None
    scorer: VideoPrompt | None = None
    video_keys: tuple[Hashable | None, ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)
    decoder_arguments: Callable[[dict[str, Tensor]], dict[str, Any]] = dict

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def visual(self) -> Tensor:
        """``(tokens,)`` bool: the tokens that selection may drop."""
        return self.video >= 0

    @property
    def num_videos(self) -> int:
        """How many videos the prompt holds."""
        return int(self.video.max()) + 1 if len(self) else 0

    @property
    def query_columns(self) -> Tensor:
        """``(text,)`` int64: every token after the last visual one, chat suffix included; all if there is none.

        What tells of a frame, the mark behind the last one for instance, asks nothing.
        """
        behind = self.visual.flip(0).cumsum(0).flip(0) == 0
        if self.label is not None:
            behind &= self.label < 0
        return behind.nonzero().squeeze(-1)

    def decoder_inputs(self, columns: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What the decoder reads of some tokens, but their positions.

        Parameters
        ----------
        columns
            ``(batch, tokens)`` int64: where they stand in the prompt.

        Returns
        -------
        inputs_embeds, arguments
            ``(batch, tokens, hidden)``, and the decoder's other keyword arguments.
        """
        extras = {name: _taken(each, columns) for name, each in self.extras.items()}
        return _taken(self.inputs_embeds, columns), self.decoder_arguments(extras)

    def keep(self, mask: Tensor) -> VideoPrompt:
        """The prompt without the tokens where `mask` is false."""
        columns = mask.to(self.input_ids.device).nonzero().squeeze(-1)
        positions = self.position_ids[:, : len(columns)] if self.closes_up else self.position_ids[:, columns]
        return replace(
            self,
            input_ids=self.input_ids[columns],
            inputs_embeds=_taken(self.inputs_embeds, columns),
            extras={name: _taken(each, columns) for name, each in self.extras.items()},
            position_ids=positions,
            video=self.video[columns],
            frame=self.frame[columns],
            label=None if self.label is None else self.label[columns],
            compact_positions=None,
            scorer=None,
        )


def _taken(per_token: Tensor, columns: Tensor) -> Tensor:
    return per_token[to_device(columns, per_token.device)]


def left_padded(rows: list[Tensor]) -> Tensor:
    """Rows ``(tokens, …)`` of a batch, with zeros in front of the shorter ones: ``(batch, longest, …)``."""
    longest = max(len(row) for row in rows)
    return torch.stack([torch.cat([row.new_zeros((longest - len(row), *row.shape[1:])), row]) for row in rows])


def generation_inputs(prompts: list[VideoPrompt]) -> dict[str, Tensor]:
    """What transformers' ``generate`` takes of a batch of prompts; see `passing_extras` for what it does not take.

    Returns
    -------
    dict
        ``input_ids`` and ``attention_mask`` ``(batch, longest)``, ``inputs_embeds`` ``(batch, longest, hidden)`` and,
        where positions have several axes, ``position_ids`` ``(axes, batch, longest)``; padded on the left, all where
        the embeddings are. The ids are read by logits processors (repetition penalty) only.
    """
    embeds = left_padded([p.inputs_embeds for p in prompts])
    inputs = {
        "input_ids": left_padded([p.input_ids for p in prompts]).to(embeds.device),
        "inputs_embeds": embeds,
        "attention_mask": left_padded([torch.ones_like(p.input_ids) for p in prompts]).to(embeds.device),
    }
    if len(prompts[0].position_ids) > 1:
        positions = left_padded([p.position_ids.T for p in prompts]).permute(2, 0, 1)
        inputs["position_ids"] = positions.to(embeds.device)
    return inputs


@contextmanager
def passing_extras(decoder: nn.Module, prompts: list[VideoPrompt]) -> Iterator[None]:
    """Hand a batch's `extras` to the first pass of `decoder`, the one that reads the prompts; later ones read answers.

    transformers' ``generate`` hands its keyword arguments to the whole model, which makes those of its text model by
    itself and takes no others for it. Prompts without extras, of text alone for instance, have zeros in their place.
    """
    first = next((p for p in prompts if p.extras), prompts[0])
    extras = {
        name: left_padded([p.extras.get(name, like.new_zeros((len(p), *like.shape[1:]))) for p in prompts])
        for name, like in first.extras.items()
    }

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        handle.remove()
        beams = len(kwargs["inputs_embeds"]) // len(prompts)
        batch = {name: each.repeat_interleave(beams, dim=0) if beams > 1 else each for name, each in extras.items()}
        extras.clear()  # as large as the prompt; nothing reads them again
        return args, {**kwargs, **first.decoder_arguments(batch)}

    handle = decoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def consecutive(present: Tensor) -> Tensor:
    """Positions ``(1, kept)`` int64 from 0 on, of the tokens in a ``(tokens,)`` mask: most families' scoring rule."""
    return torch.arange(int(present.sum()), device=present.device)[None]
