"""``lmms-flexselect pca``: how query, needle and other visual tokens lie in each layer (paper, figure 8)."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.family import reading_inputs
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.method.relevance import read_layers
from lmms_flexselect.method.selectors.reference_layer import set_prompt
from lmms_flexselect.options import layer_numbers
from lmms_flexselect.saving import saving
from lmms_flexselect.tools.analysis.arguments import check_arguments, make_parser, samples_of
from lmms_flexselect.tools.analysis.model import load
from lmms_flexselect.tools.analysis.plots import tokens_in_layers
from lmms_flexselect.tools.plotting import pyplot

BASES = ("all", "visual")
GROUPS = ("other", "needle", "query")


@torch.no_grad()
def states_of_layers(decoder: nn.Module, prompt: VideoPrompt, layers: Collection[int]) -> dict[int, Tensor]:
    """What enters each layer, of the visual and the query tokens: ``(visual + query, hidden)`` float32 on the CPU.

    One pass over the prompt as one frame set.
    """
    columns = prompt.visual.cpu().nonzero().squeeze(-1)
    own = set_prompt(prompt, columns, prompt.query_columns)
    wanted = torch.cat([own.places, own.queries])
    modules: Any = decoder.layers
    embeds, arguments = prompt.decoder_inputs(own.columns[None])
    with ExitStack() as undo:
        read = {layer: undo.enter_context(reading_inputs(modules[layer])) for layer in layers}
        read_layers(decoder, layers, embeds[0], own.positions, lambda *_: None, arguments)
    return {layer: states[0][0, wanted.to(states[0].device)].float().cpu() for layer, states in read.items()}


def projected(states: Tensor, groups: npt.NDArray[np.str_], basis: str) -> tuple[npt.NDArray[np.float64], float]:
    """Tokens ``(tokens, 2)`` on the first two principal components, and the share of the variance that these explain.

    Parameters
    ----------
    states
        ``(tokens, hidden)``.
    groups
        ``(tokens,)``, of `GROUPS`.
    basis
        Whose components: ``"all"`` tokens' or the ``"visual"`` ones'.
    """
    from sklearn.decomposition import PCA

    values = states.double().numpy()
    fitted = PCA(2, svd_solver="full").fit(values if basis == "all" else values[groups != "query"])
    return fitted.transform(values), float(fitted.explained_variance_ratio_.sum())


def main(words: list[str]) -> int:
    """``lmms-flexselect pca --model … --model_args … [--layers 0,4,8] [--basis visual] --output FILE.png``."""
    parser = make_parser("pca", __doc__)
    parser.add_argument("--basis", default="all", choices=BASES, help="whose principal components")
    parser.add_argument("--sample", type=int, default=0, help="which sample, counted from 0")
    parser.add_argument("--output", type=Path, default=Path("pca.png"), help="picture; its numbers go into FILE.npz")
    args = parser.parse_args(words)
    check_arguments(args, ".png")
    return picture(args)


def picture(args: argparse.Namespace) -> int:
    """Load, read, project, draw."""
    pyplot()
    model = load(args.model, args.model_args)
    layers = sorted(layer_numbers(args.layers, model.num_layers, f"layers={args.layers}"))
    source, samples = samples_of(args, model, args.sample + 1)
    if args.sample >= len(samples):
        raise OptionError(f"sample={args.sample}: there are {len(samples)}, counted from 0")
    sample = samples[args.sample]
    prompt = model.prompt(source.read(sample, model.reader.frames_per_unit), sample.question)
    visual = prompt.visual.cpu()
    needle = sample.tokens(model.reader.family, prompt)[visual].numpy()
    groups = np.concatenate([np.where(needle, "needle", "other"), np.full(len(prompt.query_columns), "query")])
    points: dict[int, npt.NDArray[np.float64]] = {}
    explained: dict[int, float] = {}
    for layer, states in states_of_layers(model.decoder, prompt, layers).items():
        own, explained[layer] = projected(states, groups, args.basis)
        # A component's sign says nothing: as in the layer before, so that panels can be compared.
        before = points[max(points)] if points else own
        points[layer] = own * np.where((own * before).sum(0) < 0, -1, 1)
    with saving(args.output):
        args.output.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            args.output.with_suffix(".npz"),
            layers=np.array(layers),
            points=np.stack([points[layer] for layer in layers]),
            explained=np.array([explained[layer] for layer in layers]),
            groups=groups,
        )
    title = f"{args.model}: “{sample.question}” ({args.basis} tokens' components)"
    tokens_in_layers(points, groups, explained, title, args.output)
    print(f"{args.output} and {args.output.with_suffix('.npz')} are written")
    return 0
