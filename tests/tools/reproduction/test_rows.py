"""Every run: the paper's row it is, what lmms-eval reads of its file, and what its model class makes of that."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from lmms_eval import __main__ as lmms_eval_command
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import simple_parse_args_string

from lmms_flexselect.tools.doctor.checkpoints import published, write_stand_in
from lmms_flexselect.tools.doctor.plan import resolved
from lmms_flexselect.tools.installed import installed_path
from lmms_flexselect.tools.reproduction.rows import RunConfig, ablations, facts, runs, table_1
from tests.support.stock_tasks import STOCK_TASKS

CONFIGS = Path(__file__).parents[3] / "run_configs"
RUNS = {run.path: run for run in runs()}
PAPER = facts()["published"]
LITE = {"LLaVA-Video-7B", "InternVL2.5-8B", "Qwen2.5-VL-7B"}
# Model arguments that choose hardware, not answers.
HARDWARE = {"attn_implementation", "device_map"}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Folders that hold the configuration of each published checkpoint, by hub name."""
    root = tmp_path_factory.mktemp("published")
    return {name: str(write_stand_in(name, root)) for name in published()}


def built(run: RunConfig, places: dict[str, str], arguments: Mapping[str, Any]) -> tuple[dict, dict]:
    """Options and upstream's arguments of the model that would be built, without weights."""
    arguments = dict(arguments)
    trained_here = {"LLaVA-Video-7B": "llava_video", "InternVL2.5-8B": "internvl2.5"}
    for name in ("pretrained", "selector_path"):
        if name in arguments:
            other = f"yunzhuyunzhu/flexselect_{trained_here.get(run.row)}"
            arguments[name] = places.get(arguments[name]) or places[other]
    instance, upstream = resolved(run.model, {**arguments, "batch_size": 1, "device": "cuda:0"})
    return instance.options.to_dict(), upstream


# Which runs there are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["paper", "stock"])
@pytest.mark.parametrize("row", PAPER["table1"], ids=lambda row: f"{row['model']} {row['selector']}")
def test_every_row_of_the_table_has_a_run(row, protocol):
    found = [r for r in table_1() if (r.row, r.selector, r.protocol) == (row["model"], row["selector"], protocol)]
    assert [run.published for run in found] == [{n: v for n, v in row.items() if n not in ("model", "selector")}]
    for number in found[0].published.values():
        assert f" {number}" in (CONFIGS / found[0].path).read_text().split("\nmodel:")[0]


def test_there_are_no_others():
    assert len(table_1()) == 2 * len(PAPER["table1"])
    assert {run.row for run in table_1() if run.selector == "lite"} == LITE


def test_ablations_are_the_papers():
    points = {
        "input_frames": ("input_frames_at_budget_6720", lambda run: run.arguments["max_frames_num"]),
        "token_budget": ("budget_at_512_frames", lambda run: run.arguments["token_budget"]),
        "training_data": (
            "training_data_percent_at_64_frames_1680_tokens",
            lambda run: int(run.arguments["selector_path"].rsplit("_", 1)[1]),
        ),
    }
    for name, (table, point) in points.items():
        own = {point(run): run.published["videomme"] for run in ablations() if f"/{name}/" in run.path}
        # 0 % is a selector that is not trained at all: there is no command that makes one.
        assert own == {key: value for key, value in PAPER["ablations"][table].items() if key}
    sizes = [run.published for run in ablations() if "/selector_size/" in run.path]
    assert sizes == [
        {name: value for name, value in size.items() if name not in ("params", "response_s")}
        for size in PAPER["selector_size"]
    ]


@pytest.mark.parametrize(("row", "layers", "papers"), [("llava_video_7b", 28, 19), ("qwen2_5_vl_7b", 28, 20)])
def test_the_layer_sweep_goes_through_the_papers_layer_to_the_last(row, layers, papers):
    swept = [run.arguments["reference_layer"] for run in ablations() if f"/reference_layer_{row}/" in run.path]
    assert papers in swept
    assert swept == sorted(set(swept))
    assert swept[-1] == layers - 1


def test_an_ablation_changes_what_it_is_about_and_nothing_else():
    rows = {(run.row, run.selector): run.arguments for run in table_1() if run.protocol == "paper"}
    for run in ablations():
        basis = rows[run.row, run.selector]
        changed = {name for name in run.arguments if run.arguments[name] != basis[name]}
        assert list(run.arguments) == list(basis)
        about = run.path.split("/")[1]
        assert changed <= {
            "input_frames": {"max_frames_num"},
            "token_budget": {"token_budget"},
            "selector_size": {"selector_path"},
            "training_data": {"selector_path", "max_frames_num", "token_budget"},
        }.get(about, {"reference_layer"})


# What lmms-eval and the model classes make of them ----------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    """lmms-eval's own reading of ``--config``; what it would evaluate is handed back instead."""
    asked: list[Any] = []

    def evaluate(args: Any) -> tuple[None, None]:
        asked.append(args)
        return None, None

    monkeypatch.setattr(lmms_eval_command, "cli_evaluate_single", evaluate)
    monkeypatch.setattr(lmms_eval_command, "eval_logger", MagicMock())
    process = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    monkeypatch.setattr(lmms_eval_command, "Accelerator", lambda **kwargs: process)
    monkeypatch.setenv("VERBOSITY", "INFO")

    def read(config: Path):
        words = ["lmms-eval", "--config", str(config), "--include_path", str(installed_path("tasks"))]
        monkeypatch.setattr("sys.argv", words)
        lmms_eval_command.cli_evaluate()
        return asked

    return read


@functools.cache
def task_names() -> frozenset[str]:
    """Ours, and lmms-eval's that other tests run."""
    own = TaskManager("ERROR", include_path=str(installed_path("tasks")), include_defaults=False)
    return frozenset({*own.all_tasks, *STOCK_TASKS})


@pytest.mark.parametrize("path", RUNS)
def test_lmms_eval_reads_it_and_its_model_class_takes_it(path, command, places):
    run = RUNS[path]
    (args,) = command(CONFIGS / path)
    assert args.model == run.model
    assert args.batch_size == 1
    assert args.log_samples is True
    assert set(args.tasks.split(",")) <= task_names()
    given = simple_parse_args_string(args.model_args)
    options, upstream = built(run, places, given)
    # Everything that was said arrives, and nothing that changes an answer was left to a default.
    for name, value in given.items():
        if name in options and name not in ("pretrained", "selector_path"):
            expected = None if value == "sampled" else value
            assert options[name] == expected, name
        elif name not in ("pretrained", "selector_path"):
            assert upstream[name] == value, name
    assert options["selector"] == run.selector
    left = set(upstream) - set(given) - {"batch_size", "device", "torch_dtype"}
    assert left == set()


@pytest.mark.parametrize("path", [path for path, run in RUNS.items() if run.protocol == "stock"])
def test_the_stock_protocol_is_this_packages_defaults(path, places):
    run = RUNS[path]
    least = {name: run.arguments[name] for name in ("pretrained", "selector", "selector_path") if name in run.arguments}
    least |= {name: run.arguments[name] for name in HARDWARE}
    if run.selector == "none":  # reads one frame set; see table.yaml
        frames = next(name for name in ("max_frames_num", "max_num_frames", "num_frames") if name in run.arguments)
        least[frames] = run.arguments[frames]
    options, upstream = built(run, places, run.arguments)
    defaults, upstreams = built(run, places, least)
    assert options == defaults
    assert {name: upstream[name] for name in upstreams} == upstreams


PROTOCOL = {
    "LLaVA-Video": {"budget_remainder": "drop", "token_budget": 6720, "mm_spatial_pool_mode": "bilinear"},
    "Qwen2.5-VL": {"budget_remainder": "drop", "token_budget": 7040, "seconds_per_unit": 1.0, "fps": 2.0},
    "InternVL2.5": {
        "budget_remainder": "drop",
        "token_budget": 8256,
        "frame_labels": "bare",
        "image_marks": "compete",
        "system_message": "internvl2_5",
    },
}


@pytest.mark.parametrize("run", [r for r in table_1() if r.protocol == "paper" and r.selector != "none"], ids=str)
def test_the_papers_protocol_is_the_reference_codes(run):
    expected = PROTOCOL[run.row.rsplit("-", 1)[0]]
    assert run.arguments.items() >= {**expected, "max_frames_per_set": 64, "reduction": "max"}.items()
    layers = {"LLaVA-Video-7B": 19, "Qwen2.5-VL-7B": 20, "InternVL2.5-8B": 15}
    if run.selector == "flexselect":
        assert run.arguments["reference_layer"] == layers.get(run.row, 60)
    subtitles = "flexselect_paper_longvideobench_sub" in run.tasks
    assert subtitles == (run.row == "InternVL2.5-8B")
    assert len(run.tasks) == 4
