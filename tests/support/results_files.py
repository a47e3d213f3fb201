"""Results and samples files as lmms-eval writes them, without a model: its own scoring and its own writer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmms_eval.api.metrics import mean
from lmms_eval.evaluator_utils import TaskOutput, consolidate_results
from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
from lmms_eval.tasks.longvideobench import utils as longvideobench
from lmms_eval.tasks.lvbench import utils as lvbench
from lmms_eval.tasks.mlvu import utils as mlvu
from lmms_eval.tasks.videomme import utils as videomme
from lmms_eval.utils import hash_string

from tests.support.stock_tasks import STOCK_TASKS

Doc = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """How lmms-eval scores one task: its metric, its two functions, and what its file says of clusters."""

    metric: str
    process_results: Callable[[Doc, list[str]], Doc]
    aggregate: Callable[[list[Any]], float]
    cluster_key: str | None = None


SCORED = {
    "videomme": Scored(
        "videomme_perception_score",
        videomme.videomme_process_results,
        videomme.videomme_aggregate_results,
        "videoID",
    ),
    "mlvu_dev": Scored("mlvu_percetion_score", mlvu.mlvu_process_results, mlvu.mlvu_aggregate_results_dev),
    "longvideobench_val_v": Scored(
        "lvb_acc", longvideobench.longvideobench_process_results, longvideobench.longvideobench_aggregate_results
    ),
    "lvbench": Scored("lvbench_score", lvbench.lvbench_process_results, mean),
}

OPTIONS: Doc = {
    "selector": "flexselect",
    "selector_path": None,
    "reference_layer": 19,
    "token_budget": 6720,
    "max_frames_per_set": 64,
    "reduction": "max",
    "budget_remainder": "drop",
    "dtype": "bfloat16",
    "strict": True,
    "dump_selection": None,
}
UPSTREAM: Doc = {
    "pretrained": "lmms-lab/LLaVA-Video-7B-Qwen2",
    "max_frames_num": "512",
    "conv_template": "qwen_1_5",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": "2",
    "device": "cuda:0",
    "batch_size": "1",
}


def answers(wrong: set[int], n: int = 12) -> list[str]:
    """Of `n` questions, all right but those; the rows of `STOCK_TASKS` have A to D for right answers in turn."""
    return ["ABCD"[(i + (i in wrong)) % 4] for i in range(n)]


def write_run(
    folder: Path,
    answered: dict[str, list[str]],
    date: str = "20260101_000000",
    model: str = "llava_vid_flexselect",
    of: int | None = None,
    log_samples: bool = True,
    unreadable: list[Doc] | None = None,
    upstream: Doc | None = None,
    by_task: Doc | None = None,
    **options: Any,
) -> Path:
    """Write what a run leaves behind that answered the stock tasks so; returns the results file.

    `of` is how many questions a task has, if more were there than were asked (``--limit``); `options` and `upstream`
    change those of `OPTIONS` and `UPSTREAM`; `by_task` is what was measured.
    """
    upstream = {**UPSTREAM, **(upstream or {})}
    options = {**OPTIONS, **options}
    resolved: Doc = {**options, "upstream": upstream}
    limit = None if of is None else max(map(len, answered.values()))
    outputs = [_task_output(task, given) for task, given in answered.items()]
    results, samples, configs, versions, n_shot, higher = consolidate_results(outputs)
    content = {
        "results": dict(results),
        "group_subtasks": {task: [] for task in answered},
        "configs": dict(configs),
        "versions": dict(versions),
        "n-shot": dict(n_shot),
        "higher_is_better": dict(higher),
        "n-samples": {t: {"original": of or len(given), "effective": len(given)} for t, given in answered.items()},
        "config": {
            "model": model,
            "model_args": f"pretrained={upstream['pretrained']},selector={options['selector']}",
            "model_backend": "lmms_flexselect.families.llava_video.lmms_eval.LlavaVidFlexSelect (simple)",
            "limit": limit,
            "offset": 0,
            "resolved_cli_args": {
                "log_samples": log_samples,
                "repeats": 1,
                "gen_kwargs": "",
                "flexselect": {
                    "options": resolved,
                    "versions": {"lmms_eval": "0.7.3", "torch": "2.9.0"},
                    "by_task": by_task or {},
                    "unreadable": unreadable or [],
                },
            },
        },
    }
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(model, f"pretrained={upstream['pretrained']}", "", "", False)
    tracker.save_results_aggregated(content, copy.deepcopy(samples) if log_samples else {}, date)
    if log_samples:
        for task in answered:
            tracker.save_results_samples(task, samples[task])
    (file,) = folder.rglob(f"{date}_results.json")
    return file


def _task_output(task: str, given: list[str]) -> TaskOutput:
    scored = SCORED[task]
    config: Doc = {"task": task, "metric_list": [{"metric": scored.metric, "higher_is_better": True}], "repeats": 1}
    if scored.cluster_key is not None:
        config["cluster_key"] = scored.cluster_key
    output = TaskOutput(
        task=SimpleNamespace(
            aggregation=lambda: {scored.metric: scored.aggregate},
            higher_is_better=lambda: {scored.metric: True},
        ),
        task_name=task,
        task_config=config,
        version="Yaml",
        n_shot=0,
    )
    output.logged_samples = [_sample(task, number, answer) for number, answer in enumerate(given)]
    output.sample_metrics[scored.metric, "none"] = [sample[scored.metric] for sample in output.logged_samples]
    output.calculate_aggregate_metric(bootstrap_iters=0)
    output.calculate_clt_aggregate_metric()
    return output


def _sample(task: str, number: int, answer: str) -> Doc:
    doc = STOCK_TASKS[task].row(number)
    return {
        "doc_id": number,
        "doc": doc,
        "target": doc.get("answer", "ABCD"[number % 4]),
        "arguments": [doc["question"], {"max_new_tokens": 16}],
        "resps": [[answer]],
        "filtered_resps": [answer],
        "token_counts": [None],
        "doc_hash": hash_string(""),
        **SCORED[task].process_results(doc, [answer]),
    }


right = partial(answers, set())
