"""The sizes of a model from which its costs follow: plain numbers, supplied by each family (see `FamilySpec.shape`).

Importing this module does not import torch, which a broken installation cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Experts:
    """The MLPs of a mixture-of-experts decoder.

    Attributes
    ----------
    number
        Experts in a layer.
    per_token
        Experts that one token is routed to.
    intermediate
        Inner width of one expert.
    layers
        The layers (0-based) that have experts; the others have one MLP of the decoder's own `intermediate`.
    """

    number: int
    per_token: int
    intermediate: int
    layers: frozenset[int]


@dataclass(frozen=True)
class DecoderShape:
    """A text model with grouped-query attention and gated MLPs, by transformers' words.

    Attributes
    ----------
    intermediate
        Inner width of the MLP in the layers without experts.
    vocabulary
        Rows of the output matrix.
    experts
        None where every layer has one MLP.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    experts: Experts | None = None

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """From a text configuration of transformers; experts as those with ``num_experts`` name them."""
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        experts = None
        if number := getattr(config, "num_experts", 0):
            every, dense = getattr(config, "decoder_sparse_step", 1), getattr(config, "mlp_only_layers", None) or ()
            sparse = frozenset(n for n in range(layers) if n not in dense and (n + 1) % every == 0)
            experts = Experts(number, config.num_experts_per_tok, config.moe_intermediate_size, sparse)
        return cls(
            layers,
            config.hidden_size,
            config.intermediate_size,
            heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
            experts,
        )


@dataclass(frozen=True)
class SelectorShape:
    """A FlexSelect-Lite selector: its parameters, the projector among them, and its decoder."""

    parameters: int
    decoder: DecoderShape

    @classmethod
    def of(cls, network: Any, config: Any) -> SelectorShape:
        """From the class of a selector's module and its configuration."""
        return cls(parameters_of(network, config), DecoderShape.of(config))


@dataclass(frozen=True)
class TowerShape:
    """A vision tower, up to the layer whose features are read, and what one unit costs it.

    Attributes
    ----------
    layers, width
        Of its transformer.
    matrix_values
        Values of all matrices of one layer.
    patches, patch_values
        Patches of one unit that are embedded, and values of one patch.
    tokens
        Of one unit, in the layers: the patches, and a class token where there is one.
    attention_pairs
        Pairs of tokens that attend to each other, summed over the layers; at most so many, where the frames' size is
        not known.
    elements_held
        Elements per token that the modules hold at once in inference, with fused attention.
    """

    layers: int
    width: int
    matrix_values: int
    patches: int
    patch_values: int
    tokens: int
    attention_pairs: int
    elements_held: int


@dataclass(frozen=True)
class LinearShape:
    """A linear layer of the projector.

    Attributes
    ----------
    rows
        Of one unit's features that go through it.
    width_in, width_out
        Values of a row; None for the width of the decoder that is projected to, the model's or a selector's.
    """

    rows: int
    width_in: int | None
    width_out: int | None


@dataclass(frozen=True)
class ModelShape:
    """A VideoLLM, and what one unit (see `VideoPrompt.frame`) of a video costs it.

    Attributes
    ----------
    parameters
        Of the whole model; tied ones count once.
    decoder, tower, projector
        Its parts. A selector's projector has the same layers, to a decoder of another width.
    tokens
        Visual tokens of one unit, all that compete for the budget.
    pixels
        Values of one unit's pixels.
    units_at_once
        Units that the tower encodes at once; None if it encodes a whole video.
    embedding_copies
        Copies of a video's embeddings that exist while they are put in their places.
    pixels_on_device
        Whether all pixels of a video lie on the GPU, in the model's dtype, while the tower reads them.
    selector
        A FlexSelect-Lite selector beside the model; None without one.
    """

    parameters: int
    decoder: DecoderShape
    tower: TowerShape
    projector: tuple[LinearShape, ...]
    tokens: int
    pixels: int
    units_at_once: int | None
    embedding_copies: int
    pixels_on_device: bool
    selector: SelectorShape | None = None


def parameters_of(model_class: Any, config: Any) -> int:
    """Parameters of a model, which is built on the meta device, without memory; tied ones count once."""
    import torch

    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())
