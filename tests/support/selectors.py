"""FlexSelect-Lite selectors with random weights: folders as published, written file by file; and their scores, plainly.

Of `lmms_flexselect` only the description of a tower is used. The plain half works in float64 with whole passes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmms_flexselect.lite.networks import Tower
from tests.support.internvl_checkpoint import write_files
from tests.support.internvl_tokenizers import tokenizer_files, vocabulary
from tests.support.oracle import Answer, deal, relevance, share, top_k

# Unlike any of the VideoLLMs' own, and unlike any default.
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 40, 56, 3, 4, 2
ROPE_THETA, EPSILON = 7000.0, 2e-5
SECTION = [1, 2, 2]
MROPE: dict[str, Any] = {"type": "mrope", "mrope_section": SECTION}
YARN: dict[str, Any] = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 4.0,
    "mrope_section": SECTION,
    "rope_type": "yarn",
    "type": "yarn",
}

# What the VideoLLMs of `random_models` and `internvl_weights` offer.
TOWERS = {
    "llava_vid": Tower("llava_vid", 32, {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}),
    "qwen2_5_vl": Tower("qwen2_5_vl", 32, {"spatial_merge_size": 2}),
    "internvl_hf": Tower("internvl_hf", 192),
}
FAMILIES = tuple(TOWERS)
DECODER = {"llava_vid": "", "qwen2_5_vl": "", "internvl_hf": "language_model.model."}
LAYOUTS = ("safetensors", "sharded", "bin", "sharded bin")
MARKS = ("<IMG_CONTEXT>", "<img>", "</img>")


# Folders


def config_words(tower: Tower, vocabulary_size: int = 96, nested: bool = False, **overrides: Any) -> dict[str, Any]:
    """A ``config.json`` in the words of the published ones; `overrides` are entries of it, None takes one out.

    `nested` is InternVL's other form, with the decoder's part under ``llm_config``.
    """
    decoder: dict[str, Any] = {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 2048,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_THETA,
        "sliding_window": 32768,
        "tie_word_embeddings": tower.family == "llava_vid",
        "use_sliding_window": False,
        "vocab_size": vocabulary_size,
    }
    words: dict[str, Any] = {"architectures": ["Qwen2ForSelector_EXTERNAL"], "torch_dtype": "bfloat16"}
    if tower.family == "qwen2_5_vl":
        decoder |= {"model_type": "qwen2_5_vl", "rope_scaling": MROPE, "drop_func_name": "token_selection"}
        words |= {
            "vision_config": {"hidden_size": tower.width, "spatial_merge_size": tower.reading["spatial_merge_size"]}
        }
    if tower.family == "internvl_hf":
        words |= {"downsample_ratio": 0.5}
    if nested:
        words |= {"llm_config": {**decoder, **overrides}, "model_type": "internvl_chat", "vision_config": {}}
        # Of the whole, and not the decoder's.
        return {**words, "hidden_size": 9999}
    words |= decoder
    return {name: value for name, value in {**words, **overrides}.items() if value is not None}


def weight_shapes(tower: Tower, words: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of a published selector, by its name."""
    words = words.get("llm_config", words)
    hidden, inner = words["hidden_size"], words["intermediate_size"]
    keys = hidden // words["num_attention_heads"] * words["num_key_value_heads"]
    own = DECODER[tower.family]
    shapes: dict[str, tuple[int, ...]] = {f"{own}embed_tokens.weight": (words["vocab_size"], hidden)}
    shapes[f"{own}norm.weight"] = (hidden,)
    for number in range(words["num_hidden_layers"]):
        layer = f"{own}layers.{number}"
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys)):
            shapes |= {f"{layer}.self_attn.{name}.weight": (rows, hidden), f"{layer}.self_attn.{name}.bias": (rows,)}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes |= {f"{layer}.mlp.{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    if tower.family == "llava_vid":
        shapes |= _linear("mm_projector.0", tower.width, hidden) | _linear("mm_projector.2", hidden, hidden)
        shapes["image_newline"] = (hidden,)
    elif tower.family == "qwen2_5_vl":
        wide = tower.width * tower.reading["spatial_merge_size"] ** 2
        shapes["merger_token_selector.ln_q.weight"] = (tower.width,)
        shapes |= _linear("merger_token_selector.mlp.0", wide, wide)
        shapes |= _linear("merger_token_selector.mlp.2", wide, hidden)
    else:
        shapes |= {"mlp1.0.weight": (tower.width,), "mlp1.0.bias": (tower.width,)}
        shapes |= _linear("mlp1.1", tower.width, hidden) | _linear("mlp1.3", hidden, hidden)
    return shapes


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 3) -> dict[str, Tensor]:
    """Much larger than a fresh model's, so that attention is far from uniform; what bfloat16 can say exactly."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=generator)
        one = name.endswith(("norm.weight", "ln_q.weight", "mlp1.0.weight"))
        weight = noise / noise[0].numel() ** 0.5 if len(shape) > 1 else 0.1 * noise + one
        weights[name] = weight.bfloat16().float()
    return weights


def write_selector_folder(
    folder: Path,
    tower: Tower,
    layout: str = "safetensors",
    prefix: str = "",
    nested: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 3,
    edit: Callable[[dict[str, Tensor]], Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    vocabulary_size: int = 96,
    **words: Any,
) -> Path:
    """Write such a folder; returns it.

    Parameters
    ----------
    folder, tower
        Where, and for what.
    layout
        One of `LAYOUTS`.
    prefix
        Of every tensor's name; some published files have ``model.``.
    nested
        See `config_words`.
    dtype
        That the tensors are stored in.
    seed
        Of the weights.
    edit
        Called with the weights, by their names without `prefix`, to spoil them in place.
    tokenizer
        Contents of its files; InternVL's selectors have `own_tokenizer` where nothing is said.
    vocabulary_size
        Rows of its table, where there is no tokenizer.
    words
        Entries of ``config.json``, or of its decoder's part; the weights follow them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tower.family == "internvl_hf" and tokenizer is None:
        tokenizer, vocabulary_size = own_tokenizer(), vocabulary("qwen2")[0]
    config = config_words(tower, vocabulary_size, nested, **words)
    weights = random_weights(weight_shapes(tower, config), seed)
    if edit is not None:
        edit(weights)
    weights = {f"{prefix}{name}": weight.to(dtype).contiguous() for name, weight in weights.items()}
    kind = "safetensors" if layout in ("safetensors", "sharded") else "bin"
    stem = "model" if kind == "safetensors" else "pytorch_model"
    shards = 2 if "sharded" in layout else 1
    files: dict[str, str] = {}
    for number in range(shards):
        part = {name: weights[name] for name in sorted(weights)[number::shards]}
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{kind}" if shards > 1 else f"{stem}.{kind}"
        files |= dict.fromkeys(part, file)
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    contents: dict[str, Any] = {"config.json": config, **(tokenizer or {})}
    if shards > 1:
        contents[f"{stem}.{kind}.index.json"] = {"metadata": {"total_size": 0}, "weight_map": files}
    return write_files(folder, contents)


def own_tokenizer(without: Sequence[str] = ()) -> dict[str, Any]:
    """Files of a selector's tokenizer, Qwen's, which lacks the tokens `without`."""
    files = tokenizer_files("qwen2")
    config = json.loads(json.dumps(files["tokenizer_config.json"]))
    listed = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {n: token for n, token in listed.items() if token["content"] not in without}
    config["additional_special_tokens"] = [t for t in config["additional_special_tokens"] if t not in without]
    added = {token: number for token, number in files["added_tokens.json"].items() if token not in without}
    return {**files, "tokenizer_config.json": config, "added_tokens.json": added}


def _linear(name: str, width_in: int, width_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


# The same once more, plainly


class PlainSelector:
    """A selector from the tensors and the ``config.json`` that were written, in float64."""

    def __init__(self, tower: Tower, vocabulary_size: int = 96, seed: int = 3, **words: Any) -> None:
        self.words = config_words(tower, vocabulary_size, **words)
        self.weights = {n: w.double() for n, w in random_weights(weight_shapes(tower, self.words), seed).items()}
        self._decoder = DECODER[tower.family]
        self.table = self.weights[f"{self._decoder}embed_tokens.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """One of its layers, with a bias where it has one."""
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """Root mean square."""
        return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * self.weights[f"{name}.weight"]

    def llava_tokens(self, features: Tensor, mode: str, stride: int) -> Tensor:
        """``(frames, patches, tower)`` to ``(frames, tokens, hidden)``."""
        x = self.linear(gelu(self.linear(features, "mm_projector.0")), "mm_projector.2")
        side = math.isqrt(features.shape[1])
        pool = bilinear(side, math.ceil(side / stride)) if mode == "bilinear" else averages(side, stride)
        pooled = torch.einsum("ri,fijh,cj->frch", pool, x.unflatten(1, (side, side)), pool)
        frames = []
        for frame in pooled:
            rows = [torch.cat([row, self.weights["image_newline"][None]]) for row in frame]
            frames.append(torch.cat(rows))
        return torch.stack(frames)

    def merged(self, patches: Tensor, merge: int) -> Tensor:
        """``(patches, tower)``, those of a token one after the other, to ``(tokens, hidden)``."""
        x = self.norm(patches, "merger_token_selector.ln_q", 1e-6)
        x = torch.stack([torch.cat(list(four)) for four in x.split(merge**2)])
        return self.linear(gelu(self.linear(x, "merger_token_selector.mlp.0")), "merger_token_selector.mlp.2")

    def attention(self, embeds: Tensor, positions: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Of the last layer: ``(heads, tokens, tokens)``; positions ``(tokens, axes)``, 0, 1, 2, … where not given."""
        angles, scale = self._angles(positions or [(column,) for column in range(len(embeds))])
        epsilon, x = self.words["rms_norm_eps"], embeds
        unseen = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        heads, kv_heads = self.words["num_attention_heads"], self.words["num_key_value_heads"]
        for number in range(self.words["num_hidden_layers"]):
            name = f"{self._decoder}layers.{number}"
            normed = self.norm(x, f"{name}.input_layernorm", epsilon)
            q, k, v = (
                self.linear(normed, f"{name}.self_attn.{part}_proj").chunk(count, -1)
                for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            seen, read = [], []
            for head in range(heads):
                of_group = head * kv_heads // heads
                logits = scale**2 * rotated(q[head], angles) @ rotated(k[of_group], angles).T
                seen.append((logits / math.sqrt(q[head].shape[-1])).masked_fill(unseen, -math.inf).softmax(-1))
                read.append(seen[-1] @ v[of_group])
            x = x + self.linear(torch.cat(read, -1), f"{name}.self_attn.o_proj")
            inner = self.norm(x, f"{name}.post_attention_layernorm", epsilon)
            gate, up = (self.linear(inner, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
            x = x + self.linear(gate / (1 + torch.exp(-gate)) * up, f"{name}.mlp.down_proj")
        return torch.stack(seen)

    def frequencies(self) -> tuple[Tensor, float]:
        """Rotary frequencies, and what cosine and sine are multiplied by."""
        size = self.words["hidden_size"] // self.words["num_attention_heads"]
        theta, scaling = self.words["rope_theta"], self.words.get("rope_scaling") or {}
        places = torch.arange(size // 2).double()
        plain = theta ** (-2 * places / size)
        if scaling.get("rope_type", scaling.get("type")) != "yarn":
            return plain, 1.0
        # YaRN: what turns often keeps its frequency, what turns seldom is slowed down, and there is a ramp between.
        length, factor = self.words["max_position_embeddings"], scaling["factor"]

        def place(turns: float) -> float:
            return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = (
            max(math.floor(place(scaling["beta_fast"])), 0),
            min(math.ceil(place(scaling["beta_slow"])), size - 1),
        )
        slowed = ((places - low) / (high - low)).clamp(0, 1)
        return plain * (1 - slowed) + plain / factor * slowed, 0.1 * math.log(factor) + 1

    def _angles(self, positions: Sequence[Sequence[int]]) -> tuple[Tensor, float]:
        frequencies, scale = self.frequencies()
        section = (self.words.get("rope_scaling") or {}).get("mrope_section", [len(frequencies)])
        axis = [number for number, width in enumerate(section) for _ in range(width)]
        own = torch.tensor([[position[a] for a in axis] for position in positions], dtype=torch.float64)
        return own * frequencies, scale


def lite_answer(
    plain: PlainSelector,
    embeds: Tensor,
    video: Sequence[int],
    frame: Sequence[int],
    budget: int,
    at_most: int,
    reduction: str = "max",
    remainder: str = "spread",
    label: Sequence[int] | None = None,
    positions: Callable[[list[int]], list[Any]] | None = None,
    whole_frames: bool = False,
) -> Answer:
    """What a selector says of one prompt: scores, frame sets, and what is kept of its visual tokens.

    Parameters
    ----------
    plain
        The selector.
    embeds
        The whole prompt as it has it, ``(tokens, hidden)`` float64.
    video, frame
        Of each token; -1 for one that is no visual token.
    budget, at_most, reduction, remainder
        As for `FlexSelect`.
    label
        Video of whose frame a text token tells, else -1.
    positions
        Those of a prompt of some columns alone; None for 0, 1, 2, ….
    whole_frames
        Whether a video's budget is rounded up to whole frames.
    """
    label = [-1] * len(video) if label is None else label
    answer = Answer()
    visual = [column for column, of in enumerate(video) if of >= 0]
    columns = [[c for c in visual if video[c] == v] for v in range(max(video) + 1)]
    asking = [c for c in range(visual[-1] + 1, len(video)) if label[c] < 0]
    for of_video, own_budget in zip(columns, share(budget, [len(c) for c in columns]), strict=True):
        frames = max(frame[c] for c in of_video) + 1
        if whole_frames:
            own_budget = math.ceil(own_budget / (len(of_video) // frames)) * (len(of_video) // frames)
        sets = deal(frames, at_most)
        first_set = max(answer.frame_set, default=-1) + 1
        scores, kept = dict.fromkeys(of_video, math.nan), set(of_video)
        for number, own_frames in enumerate(sets):
            if own_budget >= len(of_video):
                break
            members = [c for c in of_video if frame[c] in own_frames]
            tells = [c for c, of in enumerate(label) if of == video[of_video[0]] and frame[c] in own_frames]
            text = [c for c in range(len(video)) if video[c] < 0 and label[c] < 0]
            present = sorted([*text, *tells, *members])
            attention = plain.attention(embeds[present], None if positions is None else positions(present))
            rows, places = ([present.index(c) for c in some] for some in (asking, members))
            own = relevance(attention, rows, places, reduction)
            extra = number < own_budget % len(sets) if remainder == "spread" else 0
            quota = min(own_budget // len(sets) + extra, len(members))
            ranked = sorted(own, reverse=True)
            if quota < len(ranked):
                answer.score_margin = min(answer.score_margin, ranked[quota - 1] / ranked[quota] - 1)
            kept -= set(members) - {members[i] for i in top_k(own, quota)}
            scores |= dict(zip(members, own, strict=True))
        answer.kept += [len(answer.scores) + i for i, c in enumerate(of_video) if c in kept]
        answer.scores += scores.values()
        answer.frame_set += [first_set + frame[c] % len(sets) for c in of_video]
    return answer


def gelu(x: Tensor) -> Tensor:
    """The exact one."""
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Halves of ``(tokens, size)`` turned against each other by ``(tokens, size / 2)``."""
    one, two = x.chunk(2, -1)
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)


def bilinear(side: int, rows: int) -> Tensor:
    """``(rows, side)``: what each of `rows` points, the middles of equal shares, takes of its two neighbours."""
    matrix = torch.zeros(rows, side, dtype=torch.float64)
    for row in range(rows):
        place = max((row + 0.5) * side / rows - 0.5, 0.0)
        low = math.floor(place)
        matrix[row, low] += 1 - (place - low)
        matrix[row, min(low + 1, side - 1)] += place - low
    return matrix


def averages(side: int, stride: int) -> Tensor:
    """``(rows, side)``: means of so many; what is over is left out."""
    matrix = torch.zeros(side // stride, side, dtype=torch.float64)
    for row in range(side // stride):
        matrix[row, row * stride : (row + 1) * stride] = 1 / stride
    return matrix
