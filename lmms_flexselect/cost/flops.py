"""What a first token costs at least, by its parts: floating-point operations and bytes, from a model's sizes alone.

Our own arithmetic (the formulas of the paper's appendix were not at hand), counted as the architectures are run here:

FLOPs
    Matrix products and attention, a multiplication and an addition being two. Norms, activations, softmaxes, rotary
    embeddings and pooling are left out. Causal attention counts the pairs that are not masked, each once: the query at
    position i (from 0) meets i + 1 keys, so T tokens make T (T + 1) / 2 pairs. Counters that go by a kernel's shapes
    (`torch.utils.flop_counter`) count T²; tests/cost/test_flops.py, which holds this module to one, takes that into
    account.
bytes
    What cannot but pass between a GPU's memory and its cores: the weights once for each part, however many frame sets
    or chunks they serve; the hidden states into and out of every layer; a decoder's keys and values written and read
    once. What lies within a layer (queries, the inner values of an MLP) is not counted.

With the peaks of a machine, `Cost.seconds` is a floor: whichever of the two takes longer. Decoding and resizing
frames have none here: they depend on the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmms_flexselect.cost.shape import DecoderShape, LinearShape, ModelShape, TowerShape
from lmms_flexselect.method.frame_sets import interleaved_frame_sets

PARTS = ("vision", "scoring", "selection", "prefill", "first token")


@dataclass(frozen=True)
class Peaks:
    """What a machine can do: floating-point operations and bytes to and from memory, a second."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Cost:
    """Of some work.

    Attributes
    ----------
    flops
        Floating-point operations.
    weights
        Bytes of weights, read once.
    moved
        Bytes of activations, keys and values.
    """

    flops: int = 0
    weights: int = 0
    moved: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.weights + other.weights, self.moved + other.moved)

    def times(self, count: int) -> Cost:
        """The same work so many times, with the same weights."""
        return Cost(self.flops * count, self.weights, self.moved * count)

    @property
    def bytes(self) -> int:
        """All that passes between memory and cores."""
        return self.weights + self.moved

    def seconds(self, peaks: Peaks) -> float:
        """The floor on a machine."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bandwidth)


def sharing_weights(costs: Sequence[Cost]) -> Cost:
    """Of several pieces of work that one reading of the weights serves."""
    return Cost(sum(c.flops for c in costs), max((c.weights for c in costs), default=0), sum(c.moved for c in costs))


@dataclass(frozen=True)
class Request:
    """One video and one question.

    Attributes
    ----------
    units
        Units of the video (see `VideoPrompt.frame`).
    units_per_set
        Upper bound of a frame set.
    kept
        Visual tokens that stay.
    before, behind
        Text tokens around the video.
    label
        Text tokens that tell of each unit (such as ``Frame7: ``), all of which are kept.
    item
        Bytes of a value: of weights, activations, keys and values.
    """

    units: int
    units_per_set: int
    kept: int
    before: int
    behind: int
    label: int = 0
    item: int = 2


def work(model: ModelShape, request: Request, layer: int | None = None) -> dict[str, Cost]:
    """The cost of a first token, by `PARTS`.

    Parameters
    ----------
    model
        With a FlexSelect-Lite selector, that scores, at its last layer.
    request
        What is read.
    layer
        Reference layer of training-free selection, 0-based; None where the model itself does not score.
    """
    decoder, item = model.decoder, request.item
    visual = request.units * model.tokens
    vision = tower_unit(model.tower, item) + projector_unit(model.projector, decoder.hidden, item)
    scorer = None if layer is None else decoder
    if model.selector is not None:
        scorer = model.selector.decoder
        layer = scorer.layers - 1
        vision += projector_unit(model.projector, scorer.hidden, item)
    costs = {"vision": vision.times(request.units), "scoring": Cost(), "selection": Cost()}
    if scorer is not None and layer is not None and request.kept < visual:
        sets = [len(members) for members in interleaved_frame_sets(request.units, request.units_per_set)]
        prompts = [request.before + units * (model.tokens + request.label) for units in sets]
        costs["scoring"] = sharing_weights(
            [scoring(scorer, layer, prefix, request.behind, item) for prefix in prompts]
        ) + Cost(moved=4 * visual)
        costs["selection"] = Cost(moved=5 * visual)  # float32 scores read, a mask written
    prompt = request.kept + request.units * request.label + request.before + request.behind
    costs["prefill"] = decoder_layers(decoder, decoder.layers, prompt, item)
    costs["first token"] = _linear(1, decoder.hidden, decoder.vocabulary, item)
    return costs


def causal_pairs(tokens: int) -> int:
    """Of queries and keys, where every token meets those up to itself."""
    return tokens * (tokens + 1) // 2


def decoder_layers(decoder: DecoderShape, layers: int, tokens: int, item: int) -> Cost:
    """The first `layers` layers over a prompt: grouped-query attention, and an MLP with a gate or experts.

    Every expert is read that the tokens can reach: all of them, but for a prompt of very few tokens.
    """
    queries, keys = decoder.heads * decoder.head_size, decoder.key_heads * decoder.head_size
    attention = (2 * queries + 2 * keys) * decoder.hidden
    pairs = 4 * queries * causal_pairs(tokens)
    through = 2 * tokens * decoder.hidden  # hidden states in and out
    cached = 2 * 2 * tokens * keys  # keys and values, written and read
    experts, sparse = decoder.experts, 0
    used = read = 0  # by a token, and by all, in a layer with experts
    if experts is not None:
        sparse = sum(layer < layers for layer in experts.layers)
        expert, router = 3 * experts.intermediate * decoder.hidden, experts.number * decoder.hidden
        used = router + experts.per_token * expert
        read = router + min(experts.number, tokens * experts.per_token) * expert
    dense = (layers - sparse) * 3 * decoder.intermediate * decoder.hidden
    flops = 2 * tokens * (layers * attention + dense + sparse * used) + layers * pairs
    return Cost(flops, (layers * attention + dense + sparse * read) * item, layers * (through + cached) * item)


def scoring(decoder: DecoderShape, layer: int, prefix: int, behind: int, item: int) -> Cost:
    """One frame set's prompt up to the reference layer, there keys of all and queries of the text behind the video.

    Parameters
    ----------
    decoder, layer
        Who scores, and at which layer (0-based).
    prefix, behind
        Tokens of the set's prompt up to its last visual one, and behind it.
    item
        Bytes of a value.
    """
    tokens = prefix + behind
    queries, keys = decoder.heads * decoder.head_size, decoder.key_heads * decoder.head_size
    projections = 2 * (tokens * keys + behind * queries) * decoder.hidden
    products = 2 * queries * (causal_pairs(tokens) - causal_pairs(prefix))
    moved = (tokens * decoder.hidden + 2 * tokens * keys) * item
    at_layer = Cost(projections + products, (queries + keys) * decoder.hidden * item, moved)
    return decoder_layers(decoder, layer, tokens, item) + at_layer


def tower_unit(tower: TowerShape, item: int) -> Cost:
    """One unit through the vision tower: patch embedding, and the layers whose features are read."""
    flops = tower.layers * 2 * tower.tokens * tower.matrix_values + 4 * tower.attention_pairs * tower.width
    moved = tower.layers * 2 * tower.tokens * tower.width * item
    through = Cost(flops, tower.layers * tower.matrix_values * item, moved)
    return _linear(tower.patches, tower.patch_values, tower.width, item) + through


def projector_unit(projector: Sequence[LinearShape], hidden: int, item: int) -> Cost:
    """One unit's features through a projector to a decoder of `hidden` values a token."""

    def width(values: int | None) -> int:
        return hidden if values is None else values

    linears = (_linear(own.rows, width(own.width_in), width(own.width_out), item) for own in projector)
    return sum(linears, Cost())


def _linear(rows: int, width_in: int, width_out: int, item: int) -> Cost:
    matrix = width_in * width_out
    return Cost(2 * rows * matrix, matrix * item, rows * (width_in + width_out) * item)
