"""What a run needs of a GPU's memory, from sizes alone: plain arithmetic.

A sample goes through three phases, one after the other, and the largest counts: the vision tower reads the video, the
frame sets are scored, the answer is generated. Coefficients are elements per token that transformers' modules hold at
once in inference, counted at the published shapes (tests/cost/test_memory.py); with fused attention (sdpa,
flash-attention) no attention matrix is among them. Not compared with a GPU's own figures yet: there was none at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmms_flexselect.cost.shape import DecoderShape, ModelShape

GIB = 1024**3
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Tokens of text in a prompt: question, options, chat template, labels; subtitles may be more.
TEXT_TOKENS = 1024
# CUDA's context and libraries; and what the allocator cannot hand out, as a share of what is not weights.
CONTEXT = GIB
FRAGMENTED = 0.1


@dataclass(frozen=True)
class RunSettings:
    """How much a run reads and keeps.

    Attributes
    ----------
    units
        Units of the longest video (see `VideoPrompt.frame`).
    selector
        As in ``selector=``.
    token_budget
        Visual tokens kept.
    units_per_set
        Upper bound of a frame set.
    item
        Bytes of one weight.
    eager
        Whether attention matrices are written out.
    """

    units: int
    selector: str
    token_budget: int
    units_per_set: int
    item: int
    eager: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes for one copy of the model, answering one question.

    `weights` and `cache` are divided among GPUs where the model is spread over several; the others are needed on one.
    """

    weights: int
    selector: int
    embeddings: int
    reading: int
    scoring: int
    answering: int
    cache: int

    @property
    def total(self) -> int:
        """On one GPU."""
        return self.on_each(1)

    def on_each(self, gpus: int) -> int:
        """On each of several GPUs that one copy is spread over."""
        working = self.selector + self.embeddings + max(self.reading, self.scoring, self.answering + self.cache // gpus)
        return self.weights // gpus + int(working * (1 + FRAGMENTED)) + CONTEXT

    def words(self) -> str:
        """The parts, largest phase alone."""
        phases = {"reading frames": self.reading, "scoring": self.scoring, "answering": self.answering + self.cache}
        phase = max(phases, key=lambda name: phases[name])
        parts = {
            "weights": self.weights,
            "selector": self.selector,
            "embeddings": self.embeddings,
            phase: phases[phase],
        }
        return ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size >= GIB / 10)


def estimate(model: ModelShape, run: RunSettings) -> Memory:
    """What one copy of a model needs.

    Parameters
    ----------
    model
        With a FlexSelect-Lite selector, that scores.
    run
        What it reads.
    """
    item, decoder, selector = run.item, model.decoder, model.selector
    visual = run.units * model.tokens
    units_in_set = min(run.units, run.units_per_set)
    selects = run.selector != "none" and visual > run.token_budget
    kept = min(visual, run.token_budget) if selects else visual
    scorer = selector.decoder if selector else decoder if run.selector == "flexselect" else None
    return Memory(
        weights=model.parameters * item,
        selector=selector.parameters * item if selector else 0,
        embeddings=visual * (decoder.hidden + (selector.decoder.hidden if selector else 0)) * item,
        reading=_reading(model, run),
        scoring=_scoring(scorer, units_in_set * model.tokens + TEXT_TOKENS, run) if scorer and selects else 0,
        answering=_forward(decoder, kept + TEXT_TOKENS, run),
        cache=2 * decoder.layers * decoder.key_heads * decoder.head_size * (kept + TEXT_TOKENS) * item,
    )


def gib(size: float) -> str:
    """As people read it."""
    return f"{size / GIB:.1f} GiB"


def decoder_elements(decoder: DecoderShape) -> int:
    """Elements per token that one decoder layer holds at once: the gated MLP's, or the experts' where those are more.

    Experts by transformers' default (``grouped_mm``), which copies a token for each expert that it is routed to.
    """
    hidden, experts = decoder.hidden, decoder.experts
    held = 3 * decoder.intermediate
    if experts is not None:
        routed = experts.per_token * max(4 * hidden, hidden + 4 * experts.intermediate)
        held = routed if len(experts.layers) == decoder.layers else max(held, routed)
    return held + 3 * hidden


def _reading(model: ModelShape, run: RunSettings) -> int:
    tower = model.tower
    units = min(run.units, model.units_at_once or run.units)
    features = run.units * model.tokens * model.decoder.hidden * run.item
    pixels = units * model.pixels * (4 + run.item)  # they come as float32 and are rounded
    if model.pixels_on_device:
        pixels += run.units * model.pixels * run.item
    encoding = units * tower.tokens * tower.elements_held * run.item
    return max(encoding, (model.embedding_copies - 1) * features) + pixels


def _scoring(decoder: DecoderShape, tokens: int, run: RunSettings) -> int:
    group = decoder.heads // decoder.key_heads
    relevance = 3 * group * TEXT_TOKENS * tokens * 4  # logits and probabilities of one key head, in float32
    return max(_forward(decoder, tokens, run), relevance)


def _forward(decoder: DecoderShape, tokens: int, run: RunSettings) -> int:
    matrices = decoder.heads * tokens**2 * (4 + 2 * run.item) if run.eager else 0
    return tokens * decoder_elements(decoder) * run.item + matrices
