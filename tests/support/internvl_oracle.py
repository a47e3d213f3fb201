"""InternVL, and FlexSelect on it, once more and plainly: float64, whole passes, nothing of `lmms_flexselect`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.support.internvl_inputs import Token
from tests.support.internvl_weights import IMAGE_SIZE, PATCH, ROPE_FACTOR, ROPE_THETA, TEXT, TOWER
from tests.support.oracle import Answer, deal, relevance, share, top_k


def original_features(weights: dict[str, Tensor], pixels: Tensor, vit: str, layers: int) -> Tensor:
    """What InternViT's own forward and ``mlp1`` make of some frames, from the original weights alone, in float64."""
    weights = {name: weight.double() for name, weight in weights.items()}
    side, width, heads = IMAGE_SIZE // PATCH, TOWER["hidden_size"], TOWER["num_attention_heads"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def layer_norm(x, name, eps):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (x.var(-1, keepdim=True, correction=0) + eps).sqrt() * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    def norm(x, name):
        if vit == "300m":
            return layer_norm(x, name, 1e-6)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def gelu(x):
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))

    cut = pixels.double().reshape(-1, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    name = "vision_model.embeddings"
    x = cut @ weights[f"{name}.patch_embedding.weight"].flatten(1).T + weights[f"{name}.patch_embedding.bias"]
    x = torch.cat([weights[f"{name}.class_embedding"].expand(len(x), -1, -1), x], 1)
    x = x + weights[f"{name}.position_embedding"]
    for number in range(layers):
        name = f"vision_model.encoder.layers.{number}"
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").unflatten(-1, (3, width))
        q, k, v = qkv.unbind(-2)
        if vit == "6b":
            q, k = norm(q, f"{name}.attn.q_norm"), norm(k, f"{name}.attn.k_norm")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        seen = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1) @ v
        x = x + linear(seen.transpose(1, 2).flatten(2), f"{name}.attn.proj") * weights[f"{name}.ls1"]
        inner = gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + linear(inner, f"{name}.mlp.fc2") * weights[f"{name}.ls2"]
    grid = x[:, 1:].unflatten(1, (side, side))
    # Two by two patches become one token: from left to right, then from top to bottom.
    corners = [grid[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    x = layer_norm(torch.cat(corners, -1).flatten(1, 2), "mlp1.0", 1e-5)
    return linear(gelu(linear(x, "mlp1.1")), "mlp1.3")


class PlainDecoder:
    """A native model's Llama or Qwen2 from its parameters alone, positions 0, 1, 2, …; `limit` is dynamic NTK's."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        self._limit = limit
        self._weights = {n.removeprefix("model.language_model."): w.double() for n, w in model.state_dict().items()}
        self.table = self._weights["embed_tokens.weight"]

    def __call__(self, embeds: Tensor) -> tuple[list[Tensor], Tensor]:
        """Attention of each layer ``(heads, tokens, tokens)``, and the logits of every token."""
        x, attentions = embeds, []
        for layer in range(TEXT["num_hidden_layers"]):
            name = f"layers.{layer}"
            read, attention = self._attention(self._norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
            attentions.append(attention)
            x = x + read
            inner = self._norm(x, f"{name}.post_attention_layernorm")
            gate, up = (self._linear(inner, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
            x = x + self._linear(gate / (1 + torch.exp(-gate)) * up, f"{name}.mlp.down_proj")
        return attentions, self._linear(self._norm(x, "norm"), "lm_head")

    def greedy(self, embeds: Tensor, new_tokens: int) -> tuple[list[int], float]:
        """The answer without a cache, and its tokens' smallest lead."""
        tokens: list[int] = []
        margin = math.inf
        for _ in range(new_tokens):
            (best, second), (token, _) = (t.tolist() for t in self(embeds)[1][-1].topk(2))
            margin = min(margin, best - second)
            tokens.append(token)
            embeds = torch.cat([embeds, self.table[token][None]])
        return tokens, margin

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", 0)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self._weights[f"{name}.weight"]

    def _attention(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        heads, kv_heads = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
        q, k, v = (
            self._linear(x, f"{name}.{part}_proj").chunk(count, -1)
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        unseen = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        read, attentions = [], []
        for head in range(heads):
            of_group = head * kv_heads // heads
            logits = self._rotated(q[head]) @ self._rotated(k[of_group]).T / math.sqrt(q[head].shape[-1])
            attentions.append(logits.masked_fill(unseen, -math.inf).softmax(-1))
            read.append(attentions[-1] @ v[of_group])
        return self._linear(torch.cat(read, -1), f"{name}.o_proj"), torch.stack(attentions)

    def _rotated(self, x: Tensor) -> Tensor:
        """Beyond the limit the base grows with the prompt."""
        size, half = x.shape[-1], x.shape[-1] // 2
        stretch = ROPE_FACTOR * max(len(x), self._limit) / self._limit - (ROPE_FACTOR - 1)
        base = ROPE_THETA * stretch ** (size / (size - 2))
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] / base ** (torch.arange(half).double() / half)
        one, two = x[:, :half], x[:, half:]
        return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)


@dataclass
class InternVLOracle:
    """What is kept of a prompt, and what the model answers; every set is read whole, up to the last layer."""

    decoder: PlainDecoder
    layer: int
    reduction: str = "max"
    marks: str = "compete"
    remainder: str = "spread"

    def visual(self, token: Token) -> bool:
        """Whether selection may drop it."""
        return token.video >= 0 and token.kind in {"compete": ("context", "mark"), "stay": ("context",)}[self.marks]

    def __call__(self, tokens: list[Token], embeds: Tensor, budget: int, at_most: int, new_tokens: int) -> Answer:
        """Select of, and answer, one prompt."""
        answer, dropped = Answer(), set[int]()
        visual = [c for c, token in enumerate(tokens) if self.visual(token)]
        columns = [[c for c in visual if tokens[c].video == v] for v in range(tokens[visual[-1]].video + 1)]
        for of_video, own_budget in zip(columns, share(budget, [len(c) for c in columns]), strict=True):
            sets = deal(tokens[of_video[-1]].frame + 1, at_most)
            first_set = max(answer.frame_set, default=-1) + 1
            scores, kept = dict.fromkeys(of_video, math.nan), set(of_video)
            for number, frames in enumerate(sets):
                if own_budget >= len(of_video):
                    break
                members = [c for c in of_video if tokens[c].frame in frames]
                own = self._scores(tokens, embeds, members)
                extra = number < own_budget % len(sets) if self.remainder == "spread" else 0
                quota = min(own_budget // len(sets) + extra, len(members))
                ranked = sorted(own, reverse=True)
                if quota < len(ranked):
                    answer.score_margin = min(answer.score_margin, ranked[quota - 1] / ranked[quota] - 1)
                kept -= set(members) - {members[i] for i in top_k(own, quota)}
                scores |= dict(zip(members, own, strict=True))
            dropped |= set(of_video) - kept
            answer.kept += [len(answer.scores) + i for i, c in enumerate(of_video) if c in kept]
            answer.scores += scores.values()
            answer.frame_set += [first_set + tokens[c].frame % len(sets) for c in of_video]
        answer.embeds = embeds[[c for c in range(len(tokens)) if c not in dropped]]
        answer.tokens, answer.logit_margin = self.decoder.greedy(answer.embeds, new_tokens)
        return answer

    def _scores(self, tokens: list[Token], embeds: Tensor, members: list[int]) -> list[float]:
        """Of a frame set, read as if its video had no other frames, and the prompt no other video."""
        video, frames = tokens[members[0]].video, {tokens[c].frame for c in members}
        present = [
            c for c, token in enumerate(tokens) if token.video < 0 or (token.video == video and token.frame in frames)
        ]
        last = max(c for c, token in enumerate(tokens) if self.visual(token))
        rows = [i for i, c in enumerate(present) if c > last and tokens[c].video < 0]
        attention = self.decoder(embeds[present])[0][self.layer]
        return relevance(attention, rows, [present.index(c) for c in members], self.reduction)
