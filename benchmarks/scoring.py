"""Training-free scoring and selection against their floor: the same attention calls and matrix products, bare.

``OMP_NUM_THREADS=2 python benchmarks/scoring.py`` on an otherwise idle machine. Both are run in turn, so that what else
goes on disturbs them alike; the ratio of the medians is what counts. Also the selection alone, of 107,520 scores in
eight frame sets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from lmms_flexselect.flexselect import FlexSelect
from lmms_flexselect.frame_sets import interleaved_frame_sets
from lmms_flexselect.prompt import VideoPrompt, consecutive
from lmms_flexselect.selection import best_of_sets
from lmms_flexselect.selectors import ReferenceLayer

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 256, 8, 8, 2, 688
FRAMES, A_FRAME, LAYER, BUDGET = 128, 210, 5, 1680
BEFORE, BEHIND = 14, 40  # text tokens around the video


def build_decoder(seed: int = 0) -> Any:
    """A Qwen2 decoder with random weights, float32."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=131072,
    )
    return Qwen2Model(config).eval()


def build_prompt(frames: int, question: int = 0, key: Any = None) -> VideoPrompt:
    """A prompt with random embeddings; only the text behind the video depends on `question`."""
    draw = torch.Generator().manual_seed(1)
    before, visual = torch.randn(BEFORE, HIDDEN, generator=draw), torch.randn(frames * A_FRAME, HIDDEN, generator=draw)
    behind = torch.randn(BEHIND, HIDDEN, generator=torch.Generator().manual_seed(100 + question))
    ids = torch.cat([torch.arange(BEFORE), torch.full((len(visual),), 999), torch.arange(BEHIND) + 50 * (question + 1)])
    none = torch.full((len(ids),), -1)
    video, frame = none.clone(), none.clone()
    video[BEFORE:-BEHIND], frame[BEFORE:-BEHIND] = 0, torch.arange(frames).repeat_interleave(A_FRAME)
    embeds = torch.cat([before, visual, behind])
    positions = consecutive(torch.ones_like(ids))
    grids = [(frames, 14, 15)]
    return VideoPrompt(ids, embeds, positions, video, frame, grids, consecutive, True, video_keys=(key,))


def bare(decoder: Any, frames: int) -> Callable[[], None]:
    """What scoring cannot do without, on inputs that lie as the kernels like them."""
    sets = [len(frame_set) * A_FRAME for frame_set in interleaved_frame_sets(frames)]
    head = HIDDEN // HEADS

    def heads(count: int, tokens: int) -> Tensor:
        return torch.randn(1, count, tokens, head)

    x = {tokens: torch.randn(BEFORE + tokens, HIDDEN) for tokens in set(sets)}
    inner = {tokens: torch.randn(BEFORE + tokens, INNER) for tokens in set(sets)}
    qkv = {tokens: [heads(count, BEFORE + tokens) for count in (HEADS, KV_HEADS, KV_HEADS)] for tokens in set(sets)}
    text, text_inner, text_heads = torch.randn(BEHIND, HIDDEN), torch.randn(BEHIND, INNER), heads(HEADS, BEHIND)

    def layer(own: Any, x: Tensor, inner: Tensor) -> None:
        for linear in (own.self_attn.q_proj, own.self_attn.k_proj, own.self_attn.v_proj, own.self_attn.o_proj):
            linear(x)
        own.mlp.gate_proj(x)
        own.mlp.up_proj(x)
        own.mlp.down_proj(inner)

    def run() -> None:
        for tokens in sets:
            q, k, v = qkv[tokens]
            for own in decoder.layers[:LAYER]:
                layer(own, x[tokens], inner[tokens])
                F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                layer(own, text, text_inner)
                F.scaled_dot_product_attention(text_heads, k, v, enable_gqa=True)
            own = decoder.layers[LAYER].self_attn
            own.k_proj(x[tokens])
            own.q_proj(text)
            own.k_proj(text)
            for group, key in zip(text_heads[0].split(HEADS // KV_HEADS), k[0], strict=True):
                torch.matmul(group, key.T)

    return run


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def selection_milliseconds(tokens: int = 107_520, sets: int = 8, budget: int = 6720, repeats: int = 50) -> list[float]:
    """Of each of some selections of the best of random scores."""
    scores = torch.rand(tokens)
    members = [torch.arange(tokens).view(-1, A_FRAME)[g::sets].flatten() for g in range(sets)]
    return [1000 * seconds(lambda: best_of_sets(scores, members, [budget // sets] * sets)) for _ in range(repeats)]


@torch.no_grad()
def main() -> None:
    """Print the ratios, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("scoring.json"))
    arguments = parser.parse_args()
    decoder = build_decoder()
    prompt = build_prompt(arguments.frames)
    select = FlexSelect(ReferenceLayer(decoder, LAYER), BUDGET, round_budget=False)
    floor = bare(decoder, arguments.frames)
    seconds(lambda: select(build_prompt(8)))
    seconds(floor)
    measured: dict[str, list[float]] = {"floor": [], "scoring and selection": []}
    for _ in range(arguments.repeats):
        measured["floor"].append(seconds(floor))
        measured["scoring and selection"].append(seconds(lambda: select(prompt)))
    times = {name: median(values) for name, values in measured.items()}
    ratios = sorted(own / low for own, low in zip(measured["scoring and selection"], measured["floor"], strict=True))
    alone = sorted(selection_milliseconds())
    found = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "frames": arguments.frames,
        "seconds": times,
        "all_seconds": measured,
        "ratio_to_floor": times["scoring and selection"] / times["floor"],
        "ratios_run_by_run": ratios,
        "selection_alone_ms": {"tokens": 107_520, "median": median(alone), "fastest": alone[0]},
    }
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{arguments.frames} frames of {A_FRAME} tokens, layer {LAYER}, {torch.get_num_threads()} threads")
    for name, value in times.items():
        print(f"  {name:22} {value:7.2f} s")
    print(f"  ratio of the medians   {found['ratio_to_floor']:7.3f}   (run by run {ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(f"  selection alone, 107,520 tokens: {median(alone):.2f} ms (fastest {alone[0]:.2f})")


if __name__ == "__main__":
    main()
