"""Measuring first tokens: one family, one number of frames, all selectors in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from part_clock import PARTS, PartClock
from random_videollms import BEFORE, VideoLLM

from lmms_flexselect.cost import flops
from lmms_flexselect.cost.flops import Peaks, Request, work
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.spec import family as family_spec
from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.method.selectors import Uniform
from lmms_flexselect.runtime.measure import now, peak_memory

Clock = Callable[[], float]
SELECTORS = ("none", "flexselect", "lite", "uniform")
_KEPT_UNITS = 32  # what a token budget is worth where none is published


@dataclass
class Measured:
    """One selector on one number of frames.

    Attributes
    ----------
    runs
        Seconds of each part, run by run; without warm-up.
    peak_gib
        The most of all runs.
    visual, kept, text
        Tokens.
    floor, flops, bytes
        Seconds, operations and bytes of each of `flops.PARTS`.
    failed
        Why it could not be run.
    """

    family: str
    frames: int
    selector: str
    runs: list[dict[str, float]] = field(default_factory=list)
    peak_gib: float = 0.0
    visual: int = 0
    kept: int = 0
    text: int = 0
    floor: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    failed: str | None = None

    def seconds(self, *parts: str) -> float:
        """The median of what these parts took together; of all where none is named."""
        return median(sum(run.get(part, 0.0) for part in parts or PARTS) for run in self.runs)

    @property
    def over_floor(self) -> float:
        """How many times the floor its parts took."""
        return self.seconds(*flops.PARTS) / sum(self.floor.values())


def measure_family(
    llm: VideoLLM,
    path: str,
    frames: int,
    selectors: tuple[str, ...],
    repeats: int,
    peaks: Peaks,
    warm_up: int = 1,
    question: int = 80,
    clock: Clock = now,
) -> list[Measured]:
    """All selectors on one number of frames, taking turns.

    Parameters
    ----------
    llm
        Who is asked.
    path
        Of a video of `frames` frames or more.
    frames
        To read.
    selectors
        Of `SELECTORS`.
    repeats, warm_up
        Turns that count, and turns before them that do not.
    peaks
        For the floor.
    question
        Text tokens behind the video.
    clock
        Tells seconds.
    """
    found = [Measured(llm.name, frames, selector) for selector in selectors]
    ids = torch.randint(10, 1000, (question,), generator=torch.Generator().manual_seed(1))
    for turn in range(warm_up + repeats):
        for each in found:
            if each.failed is None:
                try:
                    seconds = _first_token(llm, each, path, ids, peaks, PartClock(clock))
                except (torch.OutOfMemoryError, FlexSelectError) as error:
                    each.failed = str(error).splitlines()[0]
                else:
                    each.runs += [seconds] if turn >= warm_up else []
                if each.failed is not None and torch.cuda.is_available():
                    torch.cuda.empty_cache()
    return found


@torch.no_grad()
def _first_token(
    llm: VideoLLM, found: Measured, path: str, question: torch.Tensor, peaks: Peaks, clock: PartClock
) -> dict[str, float]:
    """Seconds of each part; what else is known of the sample goes into `found`."""
    lite = found.selector == "lite"
    family = llm.family(with_selector=lite)
    selector = {
        "none": lambda: None,
        "flexselect": lambda: family.reference_layer(llm.layer),
        "lite": lambda: family.lite(llm.selector),
        "uniform": Uniform,
    }[found.selector]()
    device = llm.model.device
    with peak_memory() as peak, clock.at_seams():
        with clock.part("preprocess"):
            inputs = llm.inputs(path, found.frames, question)
        with clock.part("vision"):
            on_device = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
            (prompt,) = family.prompts(on_device)
        units, visual = prompt.grids[0][0], int(prompt.visual.sum())
        budget = llm.budget or _KEPT_UNITS * visual // units
        select = FlexSelect(selector, budget, round_budget=family.round_budget)
        with clock.part("selection"):
            selection = select(prompt)
        with clock.part("first token"), clock.forward(family.decoder, "prefill"):
            family.generate([selection.prompt], max_new_tokens=1, do_sample=False)
    if units != (wanted := found.frames // (each := family_spec(llm.name).frames_per_unit)):
        raise FlexSelectError(f"{path}: gave {units} units of {each} frame(s), not {wanted}; name a longer video")
    found.peak_gib = max(found.peak_gib, peak.gib)
    found.visual, found.kept, found.text = visual, selection.kept_tokens, len(prompt) - visual
    request = Request(
        units, select.max_frames_per_set, selection.kept_tokens, BEFORE, len(question), item=llm.model.dtype.itemsize
    )
    grid = inputs["video_grid_thw"][0, 1:].tolist() if "video_grid_thw" in inputs else None
    costs = work(llm.shape(lite, grid), request, layer=llm.layer if found.selector == "flexselect" else None)
    found.floor = {part: cost.seconds(peaks) for part, cost in costs.items()}
    found.flops = {part: cost.flops for part, cost in costs.items()}
    found.bytes = {part: cost.bytes for part, cost in costs.items()}
    return dict(clock.seconds)


def measured_peaks(device: torch.device, dtype: torch.dtype, side: int, copied: int, clock: Clock = now) -> Peaks:
    """The best of twenty products of square matrices, and of twenty copies of so many bytes."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def fastest(function: Any) -> float:
        times = []
        for _ in range(20):
            start = clock()
            function()
            times.append(clock() - start)
        return min(times)

    product, copy = fastest(lambda: a @ b), fastest(lambda: target.copy_(source))
    return Peaks(2 * side**3 / product, 2 * copied / copy)
