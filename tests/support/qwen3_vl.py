"""Qwen3-VL on random weights, dense and mixture of experts; and what it should do, as plainly as it can be put.

The oracle is float64 arithmetic on the state dict, one prompt at a time and without a cache. Only the tower's output
is the model's own, as its forward pass hands it to the text model.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from lmms_flexselect.families.qwen3_vl.needle import build_processor
from tests.support.oracle import Answer, Position, deal, share, top_k
from tests.support.random_models import Part, _filled, _padded

MERGE, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 4, 4, 2, 24
SECTION, THETA, EPSILON = [5, 4, 3], 10000.0, 1e-6
EXPERTS, CHOSEN = 6, 2
KINDS = ("dense", "moe")
SECONDS_PER_UNIT = 1.7


@cache
def processor() -> Any:
    return build_processor()


def token(name: str) -> int:
    return processor().tokenizer.convert_tokens_to_ids(f"<|{name}|>")


def qwen3_vl(kind: str = "dense", seed: int = 0, attention: str = "sdpa") -> Any:
    """A whole model in float32 with two DeepStack levels, which never ends its answer; a new one at every call."""
    return copy.deepcopy(_model(kind, seed, attention))


@cache
def _model(kind: str, seed: int, attention: str) -> Any:
    text: dict[str, Any] = {
        "vocab_size": len(processor().tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": EPSILON,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": THETA,
            "mrope_section": SECTION,
            "mrope_interleaved": True,
        },
        "pad_token_id": token("endoftext"),
    }
    if kind == "moe":  # the third layer is dense
        text |= {
            "num_experts": EXPERTS,
            "num_experts_per_tok": CHOSEN,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [2],
        }
    config_class, model_class = {
        "dense": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
        "moe": (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
    }[kind]
    config = config_class(
        text_config=text,
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            "spatial_merge_size": MERGE,
        },
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    model = _filled(model_class(config), seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = token("endoftext")
    model.generation_config.do_sample = False
    return model


# Inputs


@dataclass
class Piece:
    """Some tokens of a prompt: text, a timestamp, marks, or the visual tokens of an image or a temporal unit.

    `video` and `unit` are -1 where a piece belongs to none; `grid` is that of visual tokens.
    """

    ids: list[int]
    grid: tuple[int, int] | None = None
    video: int = -1
    unit: int = -1

    @property
    def droppable(self) -> bool:
        return self.grid is not None and self.video >= 0


def pieces_of(row: Sequence[Part], generator: torch.Generator, outer: bool = False) -> list[Piece]:
    """A prompt; with `outer` there are marks around whole videos, too, as some releases of the processor have them."""
    start, end = [token("vision_start")], [token("vision_end")]
    pieces: list[Piece] = []
    videos = 0
    for part in row:
        if isinstance(part, int):
            pieces.append(Piece(torch.randint(1, 400, (part,), generator=generator).tolist()))
            continue
        kind, (units, height, width) = part
        if kind == "image":
            visual = Piece([token("image_pad")] * (height * width), (height, width))
            pieces += [Piece(start), visual, Piece(end)]
            continue
        pieces += [Piece(start)] * outer
        for unit in range(units):
            time = processor().tokenizer(f"<{unit * SECONDS_PER_UNIT:.1f} seconds>").input_ids
            pieces += [
                Piece([*time, *start], video=videos, unit=unit),
                Piece([token("video_pad")] * (height * width), (height, width), videos, unit),
                Piece(end, video=videos, unit=unit),
            ]
        pieces += [Piece(end)] * outer
        videos += 1
    return pieces


def inputs_of(
    rows: Sequence[Sequence[Part]], padding_side: str = "left", seed: int = 0, outer: bool = False
) -> tuple[dict[str, Tensor], list[list[Piece]]]:
    """What a `Qwen3VLProcessor` returns for a batch of prompts with random text and pixels; and their pieces."""
    every: list[list[Piece]] = []
    pixels: dict[str, list[Tensor]] = {"video": [], "image": []}
    grids: dict[str, list[list[int]]] = {"video": [], "image": []}
    for row in rows:
        generator = torch.Generator().manual_seed(seed)
        every.append(pieces_of(row, generator, outer))
        for part in row:
            if not isinstance(part, int):
                kind, (units, height, width) = part
                grids[kind].append([units, height * MERGE, width * MERGE])
                patches = units * height * width * MERGE**2
                pixels[kind].append(torch.randn(patches, 3 * 2 * 16 * 16, generator=generator))
    inputs = _padded([torch.tensor([i for piece in own for i in piece.ids]) for own in every], padding_side)
    ids = inputs["input_ids"]
    if "mm_token_type_ids" in inspect.signature(Qwen3VLForConditionalGeneration.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == token("image_pad")) * 1 + (ids == token("video_pad")) * 2
    for kind, names in (
        ("video", ("pixel_values_videos", "video_grid_thw")),
        ("image", ("pixel_values", "image_grid_thw")),
    ):
        if grids[kind]:
            inputs |= {names[0]: torch.cat(pixels[kind]), names[1]: torch.tensor(grids[kind])}
    return inputs, every


# The oracle


def positions_of(pieces: Sequence[Piece]) -> list[Position]:
    """Text counts up; visual tokens are laid out by row and column; what follows goes on behind the larger side."""
    found: list[Position] = []
    following = 0
    for piece in pieces:
        if piece.grid is None:
            found += [(following + i,) * 3 for i in range(len(piece.ids))]
            following += len(piece.ids)
        else:
            height, width = piece.grid
            found += [(following, following + r, following + c) for r in range(height) for c in range(width)]
            following += max(height, width)
    return found


class Decoder:
    """The text model's arithmetic, from the state dict of a whole model."""

    def __init__(self, model: Any) -> None:
        self.weights = {
            name.removeprefix("model.language_model."): weight.double() for name, weight in model.state_dict().items()
        }

    def __call__(
        self, embeds: Tensor, positions: Sequence[Position], deepstack: Sequence[Tensor], until: int | None = None
    ) -> Tensor:
        """Logits ``(tokens, vocabulary)``, or the attention ``(heads, tokens, tokens)`` of layer `until`.

        `deepstack` has ``(tokens, hidden)`` a level, zero for text.
        """
        states = embeds.double()
        cos, sin = self._rotary(positions)
        for layer in range(LAYERS):
            name = f"layers.{layer}."
            attention, values = self._attention(self._norm(states, f"{name}input_layernorm"), name, cos, sin)
            if layer == until:
                return attention
            mixed = (attention @ values).transpose(0, 1).flatten(1)
            states = states + mixed @ self.weights[f"{name}self_attn.o_proj.weight"].T
            states = states + self._perceptron(self._norm(states, f"{name}post_attention_layernorm"), f"{name}mlp.")
            if layer < len(deepstack):
                states = states + deepstack[layer].double()
        return self._norm(states, "norm") @ self.weights["lm_head.weight"].T

    def _norm(self, states: Tensor, name: str) -> Tensor:
        return states / (states.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * self.weights[f"{name}.weight"]

    def _rotary(self, positions: Sequence[Position]) -> tuple[Tensor, Tensor]:
        """Interleaved axes: frequencies 1, 4, 7, … tell of the row, 2, 5, 8, … of the column, the rest of the time."""
        angles = torch.empty(len(positions), HEAD_DIM // 2, dtype=torch.float64)
        for j in range(HEAD_DIM // 2):
            axis = j % 3 if j < 3 * SECTION[j % 3] else 0
            frequency = THETA ** (-2 * j / HEAD_DIM)
            angles[:, j] = torch.tensor([position[axis] * frequency for position in positions], dtype=torch.float64)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    def _attention(self, states: Tensor, name: str, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def heads(which: str) -> Tensor:
            return (states @ self.weights[f"{name}self_attn.{which}_proj.weight"].T).unflatten(-1, (-1, HEAD_DIM))

        def turned(each: Tensor) -> Tensor:
            first, second = each.chunk(2, dim=-1)
            return each * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]

        queries = turned(self._norm(heads("q"), f"{name}self_attn.q_norm")).transpose(0, 1)
        keys = turned(self._norm(heads("k"), f"{name}self_attn.k_norm")).transpose(0, 1)
        keys = keys.repeat_interleave(HEADS // KV_HEADS, 0)
        values = heads("v").transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0)
        logits = queries @ keys.mT / math.sqrt(HEAD_DIM)
        future = torch.ones(logits.shape[-2:]).triu(1).bool()
        return logits.masked_fill(future, -math.inf).softmax(-1), values

    def _perceptron(self, states: Tensor, name: str) -> Tensor:
        def one(state: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
            return (torch.nn.functional.silu(state @ gate.T) * (state @ up.T)) @ down.T

        if f"{name}gate.weight" not in self.weights:
            return one(states, *(self.weights[f"{name}{part}_proj.weight"] for part in ("gate", "up", "down")))
        out = torch.zeros_like(states)
        for row, state in enumerate(states):
            likely = (state @ self.weights[f"{name}gate.weight"].T).softmax(-1)
            chosen = top_k(likely.tolist(), CHOSEN)
            for expert in chosen:
                gate, up = self.weights[f"{name}experts.gate_up_proj"][expert].chunk(2)
                down = self.weights[f"{name}experts.down_proj"][expert]
                out[row] += likely[expert] / likely[chosen].sum() * one(state, gate, up, down)
        return out


@dataclass
class Oracle:
    """What should be kept of one prompt, and answered."""

    model: Any
    layer: int
    budget: int
    max_units_per_set: int
    reduction: str = "max"

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor], pieces: list[Piece], new_tokens: int) -> Answer:
        embeds, deepstack = self._handed_over(inputs)
        decoder, positions = Decoder(self.model), positions_of(pieces)
        starts = [sum(len(p.ids) for p in pieces[:i]) for i in range(len(pieces))]
        columns = [list(range(start, start + len(p.ids))) for start, p in zip(starts, pieces, strict=True)]
        videos = 1 + max(piece.video for piece in pieces)

        def of(video: int, units: Sequence[int] | None = None) -> list[int]:
            """Where the visual tokens of a video, or of some of its units, stand."""
            return [
                column
                for piece, own in zip(pieces, columns, strict=True)
                if piece.droppable and piece.video == video and (units is None or piece.unit in units)
                for column in own
            ]

        visual = [of(video) for video in range(videos)]
        # Whatever follows the last unit and its mark is a question.
        last = max(i for i, piece in enumerate(pieces) if piece.video >= 0)
        asking = [c for own in columns[last + 1 :] for c in own]
        answer, dropped, sets_before = Answer(), set(), 0
        for video, budget in enumerate(share(self.budget, [len(v) for v in visual])):
            units = 1 + max(piece.unit for piece in pieces if piece.video == video)
            sets = deal(units, self.max_units_per_set)
            score = dict.fromkeys(visual[video], math.nan)
            set_of: dict[int, int] = {}
            for g, members in enumerate(sets):
                shown = [p.video < 0 or (p.video == video and p.unit in members) for p in pieces]
                present = [c for own, show in zip(columns, shown, strict=True) if show for c in own]
                of_set = of(video, members)
                set_of |= dict.fromkeys(of_set, sets_before + g)
                if budget >= len(visual[video]):
                    continue
                compact = positions_of([p for p, show in zip(pieces, shown, strict=True) if show])
                attention = decoder(embeds[present], compact, [each[present] for each in deepstack], until=self.layer)
                seen = attention[:, [present.index(c) for c in asking]][:, :, [present.index(c) for c in of_set]]
                own = (seen.amax((0, 1)) if self.reduction == "max" else seen.mean((0, 1))).tolist()
                quota = min(budget // len(sets) + (g < budget % len(sets)), len(of_set))
                ranked = sorted(own, reverse=True)
                if quota < len(ranked):
                    answer.score_margin = min(answer.score_margin, ranked[quota - 1] / ranked[quota] - 1)
                score |= zip(of_set, own, strict=True)
                dropped |= set(of_set) - {of_set[i] for i in top_k(own, quota)}
            sets_before += len(sets)
            answer.scores += [score[c] for c in visual[video]]
            answer.frame_set += [set_of[c] for c in visual[video]]
        stay = [c for c in range(len(embeds)) if c not in dropped]
        every = [c for v in visual for c in v]
        answer.kept = [i for i, c in enumerate(every) if c not in dropped]
        answer.positions = [positions[c] for c in stay]
        answer.embeds, deepstack = embeds[stay], [each[stay] for each in deepstack]
        states, following = answer.embeds, 1 + max(axis for position in positions for axis in position)
        told = list(answer.positions)
        for _ in range(new_tokens):
            (best, second), (new, _) = (t.tolist() for t in decoder(states, told, deepstack)[-1].topk(2))
            answer.logit_margin = min(answer.logit_margin, best - second)
            answer.tokens.append(new)
            states = torch.cat([states, decoder.weights["embed_tokens.weight"][new][None]])
            deepstack = [torch.cat([each, torch.zeros_like(each[:1])]) for each in deepstack]
            told.append((following,) * 3)
            following += 1
        return answer

    def _handed_over(self, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What the model itself hands to its text model: embeddings, and what is added a level, zero for text."""
        seen: list[dict[str, Any]] = []

        def end_there(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs)
            raise _Reached

        hook = self.model.model.language_model.register_forward_pre_hook(end_there, with_kwargs=True)
        try:
            self.model(**{name: each.double() if each.is_floating_point() else each for name, each in inputs.items()})
        except _Reached:
            pass
        finally:
            hook.remove()
        embeds, levels = seen[0]["inputs_embeds"][0], seen[0]["deepstack_visual_embeds"]
        dense = [torch.zeros_like(embeds) for _ in levels]
        for each, level in zip(dense, levels, strict=True):
            each[seen[0]["visual_pos_masks"][0]] = level
        return embeds, dense


class _Reached(Exception):
    """The text model is about to run; its experts have no float64 in some releases."""
