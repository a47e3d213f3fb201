"""What a first token costs at least, by its parts: floating-point operations and bytes, from a model's sizes alone.

Our own arithmetic (the formulas of the paper's appendix were not at hand), counted as the architectures are run here:

FLOPs
    Matrix products and attention, a multiplication and an addition being two. Norms, activations, softmaxes, rotary
    embeddings and pooling are left out. Causal attention counts the pairs that are not masked, each once: the query at
    position i (from 0) meets i + 1 keys, so T tokens make T (T + 1) / 2 pairs. Counters that go by a kernel's shapes
    (`torch.utils.flop_counter`) count T²; tests/test_flops.py, which holds this module to one, takes that into account.
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
from typing import Any

from lmms_flexselect.doctor.sizes import Decoder
from lmms_flexselect.families.llava_video.model import pooled_rows
from lmms_flexselect.frame_sets import interleaved_frame_sets

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
class Sample:
    """One video and one question.

    Attributes
    ----------
    units
        Frames (Qwen2.5-VL: pairs).
    units_per_set
        Upper bound of a frame set.
    kept
        Visual tokens that stay.
    before, behind
        Text tokens around the video.
    label
        Text tokens that tell of each unit (InternVL's ``Frame7: ``); the marks around a frame's tokens compete with
        these, and are none.
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


def work(
    family: str, config: Any, sample: Sample, layer: int | None = None, selector: Any = None, grid: Any = None
) -> dict[str, Cost]:
    """The cost of a first token, by `PARTS`.

    Parameters
    ----------
    family
        ``"llava_vid"``, ``"qwen2_5_vl"`` or ``"internvl_hf"``.
    config
        What the family's model class is built from.
    sample
        What is read.
    layer
        Reference layer of training-free selection, 0-based; None where the model itself does not score.
    selector
        Configuration of a FlexSelect-Lite selector's module, which scores at its last layer; None without one.
    grid
        Qwen2.5-VL: rows and columns of patches in a frame; the others' towers have one size.
    """
    decoder = Decoder.of(config.get_text_config())
    tokens, item = tokens_of_unit(family, config, grid), sample.item
    visual = sample.units * tokens
    vision = tower_unit(family, config, item, grid) + projector_unit(family, config, decoder.hidden, item, grid)
    scorer = None if layer is None else decoder
    if selector is not None:
        scorer, layer = Decoder.of(selector), selector.num_hidden_layers - 1
        vision += projector_unit(family, config, scorer.hidden, item, grid)
    costs = {"vision": vision.times(sample.units), "scoring": Cost(), "selection": Cost()}
    if scorer is not None and layer is not None and sample.kept < visual:
        sets = [len(members) for members in interleaved_frame_sets(sample.units, sample.units_per_set)]
        prompts = [sample.before + units * (tokens + sample.label) for units in sets]
        costs["scoring"] = sharing_weights(
            [scoring(scorer, layer, prefix, sample.behind, item) for prefix in prompts]
        ) + Cost(moved=4 * visual)
        costs["selection"] = Cost(moved=5 * visual)  # float32 scores read, a mask written
    prompt = sample.kept + sample.units * sample.label + sample.before + sample.behind
    costs["prefill"] = decoder_layers(decoder, decoder.layers, prompt, item)
    costs["first token"] = _linear(1, decoder.hidden, config.get_text_config().vocab_size, item)
    return costs


def causal_pairs(tokens: int) -> int:
    """Of queries and keys, where every token meets those up to itself."""
    return tokens * (tokens + 1) // 2


def decoder_layers(decoder: Decoder, layers: int, tokens: int, item: int) -> Cost:
    """The first `layers` layers over a prompt: grouped-query attention, and an MLP with a gate."""
    queries, keys = decoder.heads * decoder.head_size, decoder.key_heads * decoder.head_size
    matrices = (2 * queries + 2 * keys + 3 * decoder.intermediate) * decoder.hidden
    attention = 4 * queries * causal_pairs(tokens)
    through = 2 * tokens * decoder.hidden  # hidden states in and out
    cached = 2 * 2 * tokens * keys  # keys and values, written and read
    a_layer = Cost(2 * tokens * matrices + attention, matrices * item, (through + cached) * item)
    return Cost(layers * a_layer.flops, layers * a_layer.weights, layers * a_layer.moved)


def scoring(decoder: Decoder, layer: int, prefix: int, behind: int, item: int) -> Cost:
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


def tokens_of_unit(family: str, config: Any, grid: Any = None) -> int:
    """Visual tokens of a unit: LLaVA-Video's newlines and InternVL's two marks a frame are among them."""
    if family == "llava_vid":
        rows = _pooled(config)
        return rows * (rows + 1)
    if family == "internvl_hf":
        return config.image_seq_length + 2
    return grid[0] * grid[1] // config.vision_config.spatial_merge_size**2


def tower_unit(family: str, config: Any, item: int, grid: Any = None) -> Cost:
    """One unit through the vision tower: patch embedding, and the layers whose features are read.

    Attention is within a frame (Qwen2.5-VL: within a pair, and in most layers within a window of it).
    """
    vision = config.vision_config
    width, patch = vision.hidden_size, _side(vision.patch_size)
    matrices = (4 * width + 2 * vision.intermediate_size) * width
    if family == "qwen2_5_vl":
        layers, patches = vision.depth, grid[0] * grid[1]
        tokens, values = patches, 3 * vision.temporal_patch_size * patch**2
        matrices += vision.intermediate_size * width  # the MLP's gate
        whole = len(vision.fullatt_block_indexes)
        pairs = whole * patches**2 + (layers - whole) * _window_pairs(vision, grid)
    else:
        patches, values = (_side(vision.image_size) // patch) ** 2, 3 * patch**2
        if family == "llava_vid":  # the last layer is not built
            layers, tokens = vision.num_hidden_layers - 1, patches
        else:  # with a class token
            layers, tokens = vision.num_hidden_layers, patches + 1
        pairs = layers * tokens**2
    flops = layers * 2 * tokens * matrices + 4 * pairs * width
    through = Cost(flops, layers * matrices * item, layers * 2 * tokens * width * item)
    return _linear(patches, values, width, item) + through


def projector_unit(family: str, config: Any, hidden: int, item: int, grid: Any = None) -> Cost:
    """One unit's features through a projector of two matrices to a decoder of `hidden` values a token.

    LLaVA-Video's frames are pooled between the two, which is what the package does; the original pools behind both.
    """
    width = config.vision_config.hidden_size
    if family == "llava_vid":
        return _linear(config.patches_a_side**2, width, hidden, item) + _linear(
            _pooled(config) ** 2, hidden, hidden, item
        )
    if family == "internvl_hf":
        tokens, wide = config.image_seq_length, width * round(config.downsample_ratio**-2)
        return _linear(tokens, wide, hidden, item) + _linear(tokens, hidden, hidden, item)
    tokens, wide = tokens_of_unit(family, config, grid), width * config.vision_config.spatial_merge_size**2
    return _linear(tokens, wide, wide, item) + _linear(tokens, wide, hidden, item)


def _linear(tokens: int, values_in: int, values_out: int, item: int) -> Cost:
    matrix = values_in * values_out
    return Cost(2 * tokens * matrix, matrix * item, tokens * (values_in + values_out) * item)


def _window_pairs(vision: Any, grid: Any) -> int:
    """Pairs of patches in the same window of one layer; windows at the edges are smaller."""
    merge = vision.spatial_merge_size
    side = vision.window_size // vision.patch_size

    def sides(patches: int) -> list[int]:
        return [min(side, patches - start) for start in range(0, patches, side)]

    assert side % merge == 0
    return sum((rows * columns) ** 2 for rows in sides(grid[0]) for columns in sides(grid[1]))


def _pooled(config: Any) -> int:
    return pooled_rows(config.patches_a_side, config.mm_spatial_pool_mode, config.mm_spatial_pool_stride)


def _side(size: Any) -> int:
    """transformers has one number or two equal ones."""
    return size[0] if isinstance(size, (list, tuple)) else size
