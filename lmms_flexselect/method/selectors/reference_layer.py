"""FlexSelect, training-free: rank by cross-modal attention at the VideoLLM's own reference layer."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.method.prefix import Prefix, attention_of, depends_on_length, read_behind, read_prefix
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.relevance import queries_and_keys, relevance_of_sets, visual_relevance
from lmms_flexselect.method.selection import best_of_sets
from lmms_flexselect.runtime.memory import run_splitting_on_oom, sets_at_once, to_device
from lmms_flexselect.runtime.store import VideoStore, weights_key


@dataclass
class SetPrompt:
    """The prompt of one frame set: the text, and the set's visual tokens.

    Attributes
    ----------
    columns
        ``(tokens,)`` int64: where its tokens stand in the whole prompt.
    places
        ``(visual,)`` int64: which of them are the set's visual tokens.
    queries
        ``(text,)`` int64: which of them are queries.
    positions
        ``(axes, tokens)`` int64.
    """

    columns: Tensor
    places: Tensor
    queries: Tensor
    positions: Tensor

    @property
    def prefix(self) -> int:
        """How many tokens there are up to the last visual one."""
        return int(self.places[-1]) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sets of the same shape can be read together."""
        return self.prefix, len(self.columns), len(self.places)


@dataclass
class ReferenceLayer:
    """Scores a frame set by reading the set's prompt up to layer `layer` (paper, section 3.2).

    Attributes
    ----------
    decoder
        The VideoLLM's text model.
    layer
        Reference layer, 0-based.
    reduction
        ``"max"`` or ``"mean"`` over heads and text tokens.
    store
        Keeps what does not depend on the question; None keeps nothing. Scores are the same with and without.
    at_once
        Frame sets that are read together; None: as many as memory allows. Where a GPU runs out of memory, half.
    """

    decoder: nn.Module
    layer: int
    reduction: str = "max"
    store: VideoStore | None = None
    at_once: int | None = None
    title: ClassVar[str] = "FlexSelect"
    colour: ClassVar[str] = "#d62728"
    marker: ClassVar[str] = "o"

    @classmethod
    def from_options(cls, options: Any, family: Any) -> ReferenceLayer:
        """See `lmms_flexselect.method.selectors`."""
        return family.reference_layer(options.reference_layer, options.reduction)

    @torch.no_grad()
    def __call__(
        self, prompt: VideoPrompt, columns: Tensor, sets: Sequence[Tensor], quotas: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Keep the `quotas[g]` most relevant tokens of every frame set."""
        members = [of_set.nonzero().squeeze(-1) for of_set in sets]
        scores = self.scores(prompt, columns, members)
        return best_of_sets(scores, members, quotas), scores

    @torch.no_grad()
    def scores(self, prompt: VideoPrompt, columns: Tensor, members: Sequence[Tensor]) -> Tensor:
        """Relevance of a video's tokens, each read with its own frame set: ``(visual,)`` float32 where the model is.

        Parameters
        ----------
        prompt
            The whole prompt.
        columns
            ``(visual,)`` int64: where the video's tokens stand in it.
        members
            One ``(tokens of the set,)`` int64 a frame set: indices into `columns`, ascending.
        """
        attention_of(self.decoder, self.layer)
        queries = prompt.query_columns
        prompts = [set_prompt(prompt, columns[of_set], queries) for of_set in members]
        alike: dict[tuple[int, int, int], list[int]] = {}
        for number, each in enumerate(prompts):
            # Where the length of a prompt changes what its beginning is, it is read in one go, and by itself.
            whole = depends_on_length(self.decoder, int(each.positions.max()) + 1)
            alike.setdefault((number, 0, 0) if whole else each.shape, []).append(number)
        found: dict[int, Tensor] = {}
        for shape, numbers in alike.items():
            if shape[2]:
                found |= self._scores_of(prompt, columns, prompts, numbers)
            else:
                found[shape[0]] = self._read_whole(prompt, prompts[shape[0]])
        device = found[0].device
        scores = torch.empty(len(columns), dtype=torch.float32, device=device)
        scores[to_device(torch.cat(list(members)), device)] = torch.cat(
            [found[g].to(device) for g in range(len(members))]
        )
        return scores

    def relevance(self, prompt: VideoPrompt, columns: Tensor) -> Tensor:
        """Relevance of the visual tokens at `columns`, read without any other visual token: ``(columns,)`` float32.

        Gradients flow if they are on: this is how a FlexSelect-Lite selector is trained.
        """
        return self._read_whole(prompt, set_prompt(prompt, columns, prompt.query_columns))

    def _read_whole(self, prompt: VideoPrompt, read: SetPrompt) -> Tensor:
        """All of a set's prompt in one pass."""
        embeds, arguments = prompt.decoder_inputs(read.columns[None])
        q, k, scale = queries_and_keys(self.decoder, self.layer, embeds[0], read.positions, arguments)
        rows = to_device(read.queries, q.device)  # the layer may lie on another device than the prompt
        visual = torch.zeros(q.shape[1], dtype=torch.bool, device=q.device)
        visual[to_device(read.places, q.device)] = True
        return visual_relevance(q[:, rows], k, rows, visual, scale, self.reduction)

    def _scores_of(
        self, prompt: VideoPrompt, columns: Tensor, prompts: list[SetPrompt], numbers: list[int]
    ) -> dict[int, Tensor]:
        """Scores of some sets whose prompts are of one shape, by their numbers."""
        embeds = prompt.inputs_embeds
        tokens = prompts[numbers[0]].shape[1]
        at_once = self.at_once or sets_at_once(self.decoder, self.layer, tokens, embeds.dtype, embeds.device)
        video = int(prompt.video[columns[0]])
        key = prompt.video_keys[video] if prompt.video_keys and self.store is not None else None

        def run(some: Sequence[int]) -> list[Tensor]:
            return list(self._read_in_two(prompt, [prompts[number] for number in some], key))

        def free_memory(sets: int) -> bool:
            if self.store is not None and self.store.leave_gpu():
                return True
            self.at_once = max(1, sets // 2)
            return False

        advice = (
            f"it does not suffice to score one frame set of {tokens} tokens; "
            "give a smaller max_frames_per_set, or spread the model over more GPUs (device_map=auto)"
        )
        scores: dict[int, Tensor] = {}
        while numbers:
            some, numbers = numbers[:at_once], numbers[at_once:]
            scores |= zip(some, run_splitting_on_oom(run, some, advice, free_memory), strict=True)
            at_once = min(at_once, self.at_once or at_once)
        return scores

    def _read_in_two(self, prompt: VideoPrompt, some: list[SetPrompt], key: Hashable) -> Tensor:
        """Up to the last visual token, or what is kept of that, and what comes behind: ``(sets, visual)`` float32."""
        split = some[0].prefix
        columns = torch.stack([each.columns for each in some])
        positions = torch.stack([each.positions for each in some], dim=1)
        prefix = self._kept(prompt, columns[:, :split], positions[..., :split], key)
        embeds, arguments = prompt.decoder_inputs(columns[:, split:])
        q, k, scale = read_behind(self.decoder, self.layer, prefix, embeds, positions[..., split:], arguments)
        queries = some[0].queries
        if len(queries) < q.shape[2]:
            q = q[:, :, to_device(queries - split, q.device)]
        places = torch.stack([each.places for each in some])
        return relevance_of_sets(q, k, queries, places, scale, self.reduction)

    def _kept(self, prompt: VideoPrompt, columns: Tensor, positions: Tensor, key: Hashable) -> Prefix:
        """What the layers make of the beginnings of some sets' prompts: kept, or computed and kept."""

        def read() -> Prefix:
            embeds, arguments = prompt.decoder_inputs(columns)
            return read_prefix(self.decoder, self.layer, embeds, positions, arguments)

        if key is None or self.store is None:
            return read()
        # Whatever goes in: which tokens, at which positions; the visual ones are what the video's key stands for.
        own = (*columns.shape, self.layer, weights_key(self.decoder))
        digest = hashlib.blake2b(repr(own).encode(), digest_size=16)
        in_video = torch.where(prompt.visual, prompt.visual.cumsum(0), 0)[columns]
        for part in (prompt.input_ids[columns], prompt.video[columns], in_video, positions):
            digest.update(part.to(torch.int32).numpy().tobytes())
        name = (key, "prefix", digest.hexdigest())
        kept: Any = self.store.get(name)
        if kept is None:
            prefix = read()
            self.store.put(name, (prefix.keys, prefix.values))
            return prefix
        return Prefix(*kept)


def set_prompt(prompt: VideoPrompt, columns: Tensor, queries: Tensor) -> SetPrompt:
    """The prompt of the visual tokens at `columns`: with all text, but without labels of other frames.

    Raises
    ------
    FlexSelectError
        If there is nothing to rank by, or the prompt no longer holds whole frames.
    """
    if not len(queries):
        raise FlexSelectError("the prompt has no text after the video, so there is nothing to rank its tokens by")
    if prompt.compact_positions is None:
        raise FlexSelectError("this prompt has been shortened already; score the full one")
    present = ~prompt.visual
    if prompt.label is not None:
        of_video = prompt.label == prompt.video[columns[0]]
        present &= (prompt.label < 0) | (of_video & torch.isin(prompt.frame, prompt.frame[columns]))
    present[columns] = True
    place = present.cumsum(0) - 1
    return SetPrompt(present.nonzero().squeeze(-1), place[columns], place[queries], prompt.compact_positions(present))
