"""FlexSelect once more, as plainly as it can be put: Python lists and loops, float64, eager attention, no KV cache.

Nothing of `lmms_flexselect` is imported here, and speed does not matter. The rules are those of the paper and of the
reference implementation's behaviour: frame sets are dealt out like cards, each is read alone at positions of its own,
and what is kept goes back to where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tests.support.random_models import TOKENS_PER_SECOND, Part

Position = tuple[int, int, int]


def deal(items: int, at_most: int) -> list[list[int]]:
    """Numbers 0 .. items-1 dealt out to as few piles of `at_most` as will do."""
    piles: list[list[int]] = [[] for _ in range(math.ceil(items / at_most))]
    for item in range(items):
        piles[item % len(piles)].append(item)
    return piles


def top_k(scores: list[float], k: int) -> list[int]:
    """Places of the `k` highest scores, ascending; of equal scores the first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def share(budget: int, sizes: list[int]) -> list[int]:
    """Largest-remainder apportionment, ties to the first."""
    exact = [Fraction(budget * size, sum(sizes)) for size in sizes]
    shares = [math.floor(e) for e in exact]
    for _ in range(budget - sum(shares)):
        neediest = max(range(len(sizes)), key=lambda i: (exact[i] - shares[i], -i))
        shares[neediest] += 1
    return shares


def mrope(parts: list[Part], steps: list[float]) -> list[Position]:
    """Published positions of a prompt whose videos take `steps` positions a temporal unit; markers are in `parts`."""
    positions: list[Position] = []
    step_of_video = iter(steps)
    following = 0
    for part in parts:
        if isinstance(part, int):
            own = [(following + i,) * 3 for i in range(part)]
        else:
            kind, (time, height, width) = part
            step = next(step_of_video) if kind == "video" else 1.0
            own = [
                (following + math.floor(t * step), following + row, following + column)
                for t in range(time)
                for row in range(height)
                for column in range(width)
            ]
        positions += own
        following = max([following - 1, *(axis for position in own for axis in position)]) + 1
    return positions


def relevance(attentions: Tensor, rows: list[int], columns: list[int], reduction: str) -> list[float]:
    """Reduce one layer's attention ``(heads, tokens, tokens)`` over heads and `rows`, for each of `columns`."""
    seen = attentions[:, rows][:, :, columns].double().flatten(0, 1)
    return (seen.amax(0) if reduction == "max" else seen.mean(0)).tolist()


def grouped_query_relevance(
    queries: Tensor, keys: Tensor, query_columns: list[int], columns: list[int], scale: float, reduction: str
) -> list[float]:
    """The definition, one number at a time: ``(heads, text, dim)``, ``(kv_heads, tokens, dim)`` -> a score a column."""
    collected: dict[int, list[float]] = {column: [] for column in columns}
    share_a_key = len(queries) // len(keys)
    for head, of_head in enumerate(queries.double().tolist()):
        key_list = keys[head // share_a_key].double().tolist()
        for query, own_column in zip(of_head, query_columns, strict=True):
            logits = [scale * sum(q * k for q, k in zip(query, key, strict=True)) for key in key_list[: own_column + 1]]
            highest = max(logits)
            total = sum(math.exp(logit - highest) for logit in logits)
            for column in columns:
                seen = column <= own_column
                collected[column].append(math.exp(logits[column] - highest) / total if seen else 0.0)
    reduce = max if reduction == "max" else lambda values: sum(values) / len(values)
    return [reduce(collected[column]) for column in columns]


@dataclass
class Answer:
    """What the oracle says of one prompt; `scores` and `frame_set` are per visual token, NaN where nothing scored."""

    kept: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    frame_set: list[int] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    embeds: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: list[int] = field(default_factory=list)
    # How clear-cut it was: the smallest relative step from a kept to a dropped score of a frame set, and the smallest
    # lead of a generated token. Where these are tiny, rounding decides and there is no right answer to compare with.
    score_margin: float = math.inf
    logit_margin: float = math.inf


@dataclass
class Oracle:
    """`model` is a Qwen2.5-VL in float64 with eager attention; what is asked of it is one prompt at a time."""

    model: Any
    layer: int
    reduction: str = "max"
    budget: int = 7040
    max_units_per_set: int = 64
    remainder: str = "spread"
    round_budget: bool = True

    @torch.no_grad()
    def __call__(self, row: list[Part], inputs: dict[str, Tensor], seconds: list[float], new_tokens: int) -> Answer:
        """Select of, and answer, a prompt made of `row`; `inputs` is `video_inputs` of that one row."""
        parts, videos = (
            _with_markers(row),
            [part[1] for part in row if not isinstance(part, int) and part[0] == "video"],
        )
        columns = _video_columns(parts)
        positions = mrope(parts, [TOKENS_PER_SECOND * s for s in seconds])
        embeds = self._embeds(inputs)
        answer = Answer()
        dropped: set[int] = set()
        shares = share(self.budget, [len(c) for c in columns]) if columns else []
        sets_before = 0
        for number, ((units, height, width), budget) in enumerate(zip(videos, shares, strict=True)):
            a_unit = height * width
            if self.round_budget:
                budget = math.ceil(budget / a_unit) * a_unit
            sets = deal(units, self.max_units_per_set)
            scores, kept = [math.nan] * len(columns[number]), set(range(len(columns[number])))
            for g, members in enumerate(sets):
                tokens = [unit * a_unit + i for unit in members for i in range(a_unit)]
                if budget >= units * a_unit:
                    continue
                own = self._scores(parts, columns, number, tokens, embeds)
                extra = g < budget % len(sets) if self.remainder == "spread" else 0
                quota = min(budget // len(sets) + extra, len(tokens))
                chosen = top_k(own, quota)
                ranked = sorted(own, reverse=True)
                if quota < len(ranked):
                    answer.score_margin = min(answer.score_margin, ranked[quota - 1] / ranked[quota] - 1)
                kept -= set(tokens) - {tokens[i] for i in chosen}
                for place, score in zip(tokens, own, strict=True):
                    scores[place] = score
            dropped |= {columns[number][i] for i in range(len(columns[number])) if i not in kept}
            visual_before = len(answer.scores)
            answer.kept += [visual_before + i for i in sorted(kept)]
            answer.scores += scores
            answer.frame_set += [sets_before + (i // a_unit) % len(sets) for i in range(len(scores))]
            sets_before += len(sets)
        stay = [i for i in range(len(positions)) if i not in dropped]
        answer.positions = [positions[i] for i in stay]
        answer.embeds = embeds[stay]
        answer.tokens, answer.logit_margin = self._greedy(answer.embeds, answer.positions, new_tokens)
        return answer

    def _embeds(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the model itself hands to its text model: ``(tokens, hidden)`` float64."""
        seen: list[Tensor] = []
        text_model = self.model.model.language_model
        hook = text_model.register_forward_pre_hook(lambda _, __, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
        floats = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        try:
            self.model(**floats)
        finally:
            hook.remove()
        return seen[0][0]

    def _scores(
        self, parts: list[Part], columns: list[list[int]], video: int, tokens: list[int], embeds: Tensor
    ) -> list[float]:
        """Relevance of the tokens numbered `tokens` of one video, read with the text but no other video token."""
        of_set = [columns[video][i] for i in tokens]
        everything_else = {c for number, of_video in enumerate(columns) for c in of_video} - set(of_set)
        present = [c for c in range(len(embeds)) if c not in everything_else]
        compact: list[Part] = []
        numbers = iter(range(len(columns)))
        for part in parts:
            if isinstance(part, int) or part[0] == "image":
                compact.append(part)
            elif next(numbers) == video:
                _, height, width = part[1]
                compact.append(("video", (len(tokens) // (height * width), height, width)))
        last = max(c for of_video in columns for c in of_video)
        output = self.model.model.language_model(
            inputs_embeds=embeds[present][None],
            # Every set is read as if sampled once a second.
            position_ids=torch.tensor(mrope(compact, [TOKENS_PER_SECOND * 1.0])).T[:, None],
            attention_mask=torch.ones(1, len(present), dtype=torch.long),
            use_cache=False,
            output_attentions=True,
        )
        rows = [present.index(c) for c in range(last + 1, len(embeds))]
        visual = [present.index(c) for c in of_set]
        return relevance(output.attentions[self.layer][0], rows, visual, self.reduction)

    def _greedy(self, embeds: Tensor, positions: list[Position], new_tokens: int) -> tuple[list[int], float]:
        answer: list[int] = []
        margin = math.inf
        following = max(axis for position in positions for axis in position) + 1
        positions = list(positions)
        for _ in range(new_tokens):
            output = self.model.model.language_model(
                inputs_embeds=embeds[None],
                position_ids=torch.tensor(positions).T[:, None],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                use_cache=False,
            )
            (best, second), (token, _) = (
                t.tolist() for t in self.model.lm_head(output.last_hidden_state[0, -1]).topk(2)
            )
            margin = min(margin, best - second)
            answer.append(token)
            embeds = torch.cat([embeds, self.model.get_input_embeddings().weight[token][None]])
            positions.append((following,) * 3)
            following += 1
        return answer, margin


def _with_markers(row: list[Part]) -> list[Part]:
    """The parts with a text token on either side of every image and video: vision start and end."""
    parts: list[Part] = []
    for part in row:
        parts += [part] if isinstance(part, int) else [1, part, 1]
    return parts


def _video_columns(parts: list[Part]) -> list[list[int]]:
    columns: list[list[int]] = []
    start = 0
    for part in parts:
        length = part if isinstance(part, int) else math.prod(part[1])
        if not isinstance(part, int) and part[0] == "video":
            columns.append(list(range(start, start + length)))
        start += length
    return columns
