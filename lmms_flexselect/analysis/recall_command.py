"""``lmms-flexselect recall``: which decoder layer finds the needle, and so which is the reference layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_flexselect.analysis.asked import check_early, parser, samples_of
from lmms_flexselect.analysis.finished import Finished
from lmms_flexselect.analysis.haystacks import Haystack, Source
from lmms_flexselect.analysis.measured import read_result
from lmms_flexselect.analysis.model import LookedAt, load
from lmms_flexselect.analysis.recall import recall_of_layers
from lmms_flexselect.analysis.report import report, table, write
from lmms_flexselect.errors import check_matplotlib
from lmms_flexselect.options import layer_numbers, whole_number


def measure(model: LookedAt, source: Source, sample: Haystack, layers: list[int]) -> dict[str, Any]:
    """One sample: its recall at each layer, and what it is of."""
    prompt = model.prompt(source.read(sample, model.reader.frames_per_unit), sample.question)
    needle = sample.tokens(model.reader.family, prompt)
    return {
        "id": sample.id,
        "video": sample.video,
        "unit": sample.unit,
        "k": int(needle.sum()),
        "visual_tokens": int(prompt.visual.sum()),
        "recall": recall_of_layers(model.decoder, prompt, needle, layers),
    }


def main(words: list[str]) -> int:
    """``lmms-flexselect recall --model … --model_args … [--videos FOLDER --needles FOLDER] --output FILE.json``."""
    own = parser("recall", __doc__)
    own.add_argument("--samples", type=int, help="how many; without: 240, or all needles in 128 videos")
    own.add_argument("--output", type=Path, default=Path("recall.json"), help="also FILE.png, FILE.samples.jsonl")
    own.add_argument("--draw", nargs="+", metavar="FILE", help="measure nothing: results into one picture, OUTPUT.png")
    asked = own.parse_args(words)
    check_matplotlib()
    if asked.draw:
        return draw(asked.draw, asked.output.with_suffix(".png"))
    if asked.samples is not None:
        whole_number("samples", asked.samples, 1)
    check_early(asked, ".json")
    model = load(asked.model, asked.model_args)
    layers = sorted(layer_numbers(asked.layers, model.num_layers, f"layers={asked.layers}"))
    source, samples = samples_of(asked, model, asked.samples)
    about = {**model.about(), "layers": layers, **source.about()}
    finished = Finished(asked.output.with_suffix(".samples.jsonl"), about)
    waiting = [sample for sample in samples if sample.id not in finished.samples]
    for sample in tqdm(waiting, "recall", initial=len(samples) - len(waiting), total=len(samples), unit="sample"):
        finished.add(measure(model, source, sample, layers))
    said = {"model": asked.model, "family": model.family_name, "num_layers": model.num_layers}
    result = report(about, said, layers, [finished.samples[sample.id] for sample in samples])
    write(asked.output, result)
    print(table(result))
    draw([str(asked.output)], asked.output.with_suffix(".png"))
    print(
        f"{asked.output} is written" + ("" if model.of_selector else f"; reference_layer=auto:{asked.output} reads it")
    )
    return 0


def draw(files: list[str], picture: Path) -> int:
    """Results side by side."""
    from lmms_flexselect.analysis.plots import recall_over_layers

    recall_over_layers([read_result(file) for file in files], picture)
    print(f"{picture} is written")
    return 0
