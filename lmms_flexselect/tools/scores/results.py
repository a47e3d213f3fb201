"""lmms-eval's results files, and the samples files beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmms_flexselect.checkpoints import checkpoint_name
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.method.registry import canonical_name
from lmms_flexselect.tools.scores.run_options import listed, mapping, model_args, run_options
from lmms_flexselect.tools.scores.runs import Run, Score
from lmms_flexselect.tools.scores.samples import Samples, read_samples

# Tasks whose score is known to be a mean over their samples, so that other samples are another run's.
_MEANS = ("flexselect_", "videomme", "mlvu_", "longvideobench_val", "lvbench")
# Of what a run measured: what does not depend on the machine.
_PROMPTS = ("visual_tokens", "visual_tokens_kept", "input_tokens", "position_span")
_ROUNDED = 0.01  # points; LongVideoBench's score has five decimals


def read_runs(places: Iterable[Path | str]) -> list[Run]:
    """Read results files, and those in folders, however deep.

    Raises
    ------
    FlexSelectError
        If a place is not there, a folder holds no results, a file is not lmms-eval's, or two of them hold the same
        task of the same run.
    """
    files: dict[Path, Path] = {}
    for place in map(Path, places):
        for file in _files(place):
            files.setdefault(file.resolve(), file)
    runs = [read_run(file) for file in files.values()]
    seen: dict[Any, Path] = {}
    for run in runs:
        for task in run.scores:
            other = seen.setdefault((run.identity(), task), run.file)
            if other is not run.file:
                raise FlexSelectError(f"{run.name} has {task} twice, with the same options: {other} and {run.file}")
    return runs


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        if files := sorted(place.rglob("*_results.json")):
            return files
        raise FlexSelectError(
            f"{place}: no *_results.json in it; lmms-eval exits with 0 when it fails too, so look at the end of its log"
        )
    if not place.exists():
        raise FlexSelectError(f"{place}: not there; lmms-eval exits with 0 when it fails too, so look at its log")
    return [place]


def read_run(file: Path) -> Run:
    """Read one results file and the samples files beside it."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FlexSelectError(f"{file}: cannot be read ({error})") from None
    except ValueError as error:
        raise FlexSelectError(f"{file}: not whole JSON ({error}): was the run cut off?") from None
    for block in ("results", "configs", "config", "n-samples"):
        if not isinstance(content, dict) or not isinstance(content.get(block), dict):
            raise FlexSelectError(f"{file}: not one of lmms-eval's results files: it has no {block}")
    config = content["config"]
    line = mapping(config.get("resolved_cli_args"))
    own = mapping(line.get("flexselect"))
    given = model_args(config.get("model_args"))
    options = mapping(own.get("options")) or given
    groups = {name for name, tasks in mapping(content.get("group_subtasks")).items() if tasks}
    run = Run(
        file,
        str(config.get("model")),
        _checkpoint(options, given),
        canonical_name(str(options.get("selector", ""))),
        run_options(options, config, line),
        {task: _score(file, content, task) for task in content["results"] if task not in groups},
        {name: str(value) for name, value in mapping(own.get("versions")).items()},
    )
    if not run.scores:
        raise FlexSelectError(f"{file}: no task in it")
    failures = [mapping(failed) for failed in listed(own.get("unreadable"))]
    measured = mapping(own.get("by_task"))
    for score in run.scores.values():
        means = mapping(measured.get(score.task))
        numbers = {name: means.get(name) for name in _PROMPTS}
        score.prompts = {name: round(value, 4) for name, value in numbers.items() if isinstance(value, (int, float))}
        if reasons := [failed.get("error") for failed in failures if failed.get("task") == score.task]:
            score.unreadable = f"{file}: {score.task}: {len(reasons)} videos could not be read, first {reasons[0]}"
    return run


def _checkpoint(options: dict[str, Any], given: dict[str, Any]) -> str:
    """Its name: as the run itself found it, else by where it lay."""
    recorded = mapping(options.get("checkpoint")).get("name")
    place = given.get("pretrained", mapping(options.get("upstream")).get("pretrained", ""))
    return str(recorded or checkpoint_name(str(place)))


def _score(file: Path, content: dict[str, Any], task: str) -> Score:
    """One task's score; what is wrong with it stands in its `problem`."""
    values, config = mapping(content["results"][task]), mapping(content["configs"].get(task))
    metric, key, value = _metric(values, config)
    score = Score(task, metric, math.nan)
    score.n, score.of = _question_counts(mapping(content["n-samples"].get(task)), content["config"])
    if value is None or not math.isfinite(value):
        score.problem = (
            f"{file}: {task} has no score: {metric or 'nothing'} is {'not there' if value is None else value}"
        )
        return score
    path = file.with_name(file.name.replace("_results.json", f"_samples_{task}.jsonl"))
    if path != file and path.is_file():
        task_hash = mapping(content.get("task_hashes")).get(task)
        try:
            score.samples = read_samples(path, task, metric, config, task_hash)
        except FlexSelectError as error:
            score.problem = str(error)
            return score
    score.points = _points(value, metric, score.samples)
    if not 0 <= score.points <= 100 or mapping(mapping(content.get("higher_is_better")).get(task)).get(metric) is False:
        score.problem = f"{file}: {task}: {metric}={value:g} is no score of 0 to 100 where higher is better"
        return score
    score.reported_stderr = _reported_stderr(values, key)
    long = next((v for k, v in values.items() if k.startswith("videomme_long_perception_score,")), None)
    score.long_points = float(long) if isinstance(long, (int, float)) else None
    if (samples := score.samples) is not None:
        score.n = score.n or len(samples.correct)
        if len(samples.correct) != score.n:
            score.problem = f"{path}: {len(samples.correct)} samples, but its results file says {score.n} of {task}"
        elif abs(100 * samples.score() - score.points) > _ROUNDED:
            score.samples = None
            if task.startswith(_MEANS):
                made = f"{100 * samples.score():.2f}"
                score.problem = f"{path}: its samples make {made}, but its results file says {score.points:.2f}"
    if not score.n:
        score.problem = f"{file}: {task} was asked no question"
    return score


def _metric(values: dict[str, Any], config: dict[str, Any]) -> tuple[str, str, float | None]:
    """The task's first metric: its name, its key in the results, its value; None where it has none."""
    stated = [str(mapping(each).get("metric")) for each in listed(config.get("metric_list"))]
    names = [*stated, *dict.fromkeys(key.partition(",")[0] for key in values if "," in key and "_stderr" not in key)]
    for name in names:
        for key, value in values.items():
            if key.startswith(f"{name},") and isinstance(value, (int, float)):
                return name, key, float(value)
    return (names[0] if names else ""), "", None


def _question_counts(counts: dict[str, Any], config: dict[str, Any]) -> tuple[int, int]:
    """How many questions were asked, of how many; lmms-eval's "effective" knows of no offset, nor of a share."""
    of, n = counts.get("original"), counts.get("effective")
    if not isinstance(of, int) or not isinstance(n, (int, float)):
        return 0, 0
    offset = config.get("offset")
    count = math.ceil(of * n) if 0 < n < 1 else int(n)
    return max(0, min(count, of - (offset if isinstance(offset, int) else 0))), of


def _points(value: float, metric: str, samples: Samples | None) -> float:
    """0..100 from a score that may be a share or a percentage already."""
    for points in (100 * value, value):
        if samples is not None and abs(points - 100 * samples.score()) <= _ROUNDED:
            return points
    percent = metric in ("videomme_perception_score", "mlvu_percetion_score") or value > 1
    return value if percent else 100 * value


def _reported_stderr(values: dict[str, Any], key: str) -> float | None:
    """lmms-eval's standard error, in points; it is always of scores 0..1, also where the score is a percentage."""
    metric, _, filtered = key.partition(",")
    for kind in ("stderr_clustered", "stderr_clt", "stderr"):
        value = values.get(f"{metric}_{kind},{filtered}")
        if isinstance(value, (int, float)) and math.isfinite(value):
            return 100 * value
    return None
