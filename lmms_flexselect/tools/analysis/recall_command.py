"""``lmms-flexselect recall``: which decoder layer finds the needle, and so which is the reference layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_flexselect.options import layer_numbers, whole_number
from lmms_flexselect.recall_file import read_result
from lmms_flexselect.tools.analysis.arguments import check_arguments, make_parser, samples_of
from lmms_flexselect.tools.analysis.haystacks import Haystack, Source
from lmms_flexselect.tools.analysis.model import LoadedModel, load
from lmms_flexselect.tools.analysis.plots import recall_over_layers
from lmms_flexselect.tools.analysis.recall import recall_of_layers
from lmms_flexselect.tools.analysis.report import report, table, write
from lmms_flexselect.tools.analysis.sample_log import SampleLog
from lmms_flexselect.tools.plotting import pyplot


def measure(model: LoadedModel, source: Source, sample: Haystack, layers: list[int]) -> dict[str, Any]:
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
    parser = make_parser("recall", __doc__)
    parser.add_argument("--samples", type=int, help="how many; without: 240, or all needles in 128 videos")
    parser.add_argument("--output", type=Path, default=Path("recall.json"), help="also FILE.png, FILE.samples.jsonl")
    parser.add_argument(
        "--draw", nargs="+", metavar="FILE", help="measure nothing: results into one picture, OUTPUT.png"
    )
    args = parser.parse_args(words)
    pyplot()
    if args.draw:
        return draw(args.draw, args.output.with_suffix(".png"))
    if args.samples is not None:
        whole_number("samples", args.samples, 1)
    check_arguments(args, ".json")
    model = load(args.model, args.model_args)
    layers = sorted(layer_numbers(args.layers, model.num_layers, f"layers={args.layers}"))
    source, samples = samples_of(args, model, args.samples)
    about = {**model.about(), "layers": layers, **source.about()}
    log = SampleLog(args.output.with_suffix(".samples.jsonl"), about)
    waiting = [sample for sample in samples if sample.id not in log.samples]
    for sample in tqdm(waiting, "recall", initial=len(samples) - len(waiting), total=len(samples), unit="sample"):
        log.add(measure(model, source, sample, layers))
    of_model = {"model": args.model, "family": model.family_name, "num_layers": model.num_layers}
    result = report(about, of_model, layers, [log.samples[sample.id] for sample in samples])
    write(args.output, result)
    print(table(result))
    draw([str(args.output)], args.output.with_suffix(".png"))
    print(f"{args.output} is written" + ("" if model.of_selector else f"; reference_layer=auto:{args.output} reads it"))
    return 0


def draw(files: list[str], picture: Path) -> int:
    """Results side by side."""
    recall_over_layers([read_result(file) for file in files], picture)
    print(f"{picture} is written")
    return 0
