"""Training-free scoring and selection against their floor: the same attention calls and matrix products, bare.

``OMP_NUM_THREADS=2 python benchmarks/scoring.py`` on an otherwise idle machine. Both are run in turn, so that what else
goes on disturbs them alike; the ratio of the medians is what counts. Where the machine is not idle, with
``OMP_WAIT_POLICY=passive`` the ratio of processor seconds says more: threads then do not spin while they wait. Also the
selection alone, of 107,520 scores in eight frame sets.
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

from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.method.frame_sets import interleaved_frame_sets
from lmms_flexselect.method.prompt import VideoPrompt, consecutive
from lmms_flexselect.method.selection import best_of_sets
from lmms_flexselect.method.selectors import ReferenceLayer

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


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call."""
    start = clock()
    function()
    return clock() - start


def both_seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Of one call: on the wall, and of the processors."""
    start = time.process_time()
    wall = seconds(function)
    return wall, time.process_time() - start


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
    measured: dict[str, list[tuple[float, float]]] = {"floor": [], "scoring and selection": []}
    for _ in range(arguments.repeats):
        measured["floor"].append(both_seconds(floor))
        measured["scoring and selection"].append(both_seconds(lambda: select(prompt)))
    alone = sorted(selection_milliseconds())
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "frames": arguments.frames,
        "selection_alone_ms": {"tokens": 107_520, "median": median(alone), "fastest": alone[0]},
    }
    print(f"{arguments.frames} frames of {A_FRAME} tokens, layer {LAYER}, {torch.get_num_threads()} threads")
    for place, name in enumerate(("wall", "processor")):
        low, own = ([pair[place] for pair in pairs] for pairs in measured.values())
        ratio, ratios = median(own) / median(low), sorted(o / f for o, f in zip(own, low, strict=True))
        found[name] = {"floor": low, "scoring_and_selection": own, "ratio_of_medians": ratio}
        print(
            f"  {name + ' seconds':18} floor {median(low):6.2f}, scoring and selection {median(own):6.2f}, "
            f"ratio {ratio:.3f} (run by run {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )
    print(f"  selection alone, 107,520 tokens: {median(alone):.2f} ms (fastest {alone[0]:.2f})")
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
