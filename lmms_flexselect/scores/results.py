"""lmms-eval's results files: which model answered with which options, and how it scored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.scores.samples import Samples, read_samples

# Where and how it ran, or what stands elsewhere: answers are the same with others.
_NOT_OPTIONS = {"pretrained", "selector", "upstream", "batch_size", "device", "device_map", "torch_dtype"}
_NOT_OPTIONS |= {"dump_selection", "strict"}
# Tasks whose score is known to be a mean over their samples, so that other samples are another run's.
_MEANS = ("flexselect_", "videomme", "mlvu_", "longvideobench_val", "lvbench")
# Of lmms-eval's own command line: what changes questions or answers. Named in an expectation only where it is set.
_ASKED_WITH = ("gen_kwargs", "num_fewshot", "system_instruction", "apply_chat_template", "offset", "repeats")


@dataclass
class Score:
    """How one run did one task.

    Attributes
    ----------
    task, metric
        lmms-eval's names.
    points
        0..100; NaN where there is none.
    reported_stderr
        The results file's own standard error in points, clustered where it has that; None where it has none.
    n, of
        Questions asked, and questions that the task has.
    samples
        Answers one by one, where the run logged them.
    problem
        Why this is no score to compare with anything; None if it is one.
    """

    task: str
    metric: str
    points: float
    reported_stderr: float | None = None
    n: int = 0
    of: int = 0
    samples: Samples | None = None
    problem: str | None = None


@dataclass
class Run:
    """One results file.

    Attributes
    ----------
    file
        Where it was read.
    model, checkpoint, selector
        ``--model``, the checkpoint's name without folders, the selector; a model of lmms-eval's own has none: ``""``.
    options
        What else may change an answer, resolved, by name.
    scores
        By task.
    versions
        Of the software, for information.
    """

    file: Path
    model: str
    checkpoint: str
    selector: str
    options: dict[str, Any]
    scores: dict[str, Score]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model, checkpoint and selector, for people."""
        return " ".join(part for part in (self.model, self.checkpoint, self.selector) if part)

    def identity(self) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
        """What makes two runs the same run."""
        return self.model, self.checkpoint, self.selector, tuple(sorted((k, str(v)) for k, v in self.options.items()))


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
    line = _dict(config.get("resolved_cli_args"))
    own = _dict(line.get("flexselect"))
    given = _model_args(config.get("model_args"))
    options = _dict(own.get("options")) or given
    groups = {name for name, tasks in _dict(content.get("group_subtasks")).items() if tasks}
    run = Run(
        file,
        str(config.get("model")),
        checkpoint_name(str(given.get("pretrained", _dict(options.get("upstream")).get("pretrained", "")))),
        str(options.get("selector", "")),
        _options(options, config, line),
        {task: _score(file, content, task) for task in content["results"] if task not in groups},
        {name: str(value) for name, value in _dict(own.get("versions")).items()},
    )
    if not run.scores:
        raise FlexSelectError(f"{file}: no task in it")
    for failed in own.get("unreadable") or []:
        score = run.scores.get(_dict(failed).get("task", ""))
        if score is not None and score.problem is None:
            count = sum(_dict(other).get("task") == score.task for other in own["unreadable"])
            score.problem = f"{file}: {score.task}: {count} videos could not be read, first {failed.get('error')}"
    return run


def refuse_problems(runs: Iterable[Run]) -> None:
    """Raise `FlexSelectError` for the first score that is none."""
    for run in runs:
        for score in run.scores.values():
            if score.problem is not None:
                raise FlexSelectError(score.problem)


def checkpoint_name(pretrained: str) -> str:
    """A checkpoint's name without the folders it lies in: the hub name's last part, or the folder's."""
    parts = [part for part in pretrained.replace("\\", "/").split("/") if part]
    if "snapshots" in parts[1:]:  # of the hub's cache: models--ORGANISATION--NAME/snapshots/COMMIT
        return parts[parts.index("snapshots") - 1].rpartition("--")[2]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):  # a Trainer's, which has many
        return "/".join(parts[-2:])
    return parts[-1] if parts else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _model_args(given: Any) -> dict[str, Any]:
    """``--model_args`` by name, from the line or from a config file's mapping."""
    if isinstance(given, dict):
        return given
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def _options(resolved: dict[str, Any], config: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """All that may change an answer, flat, numbers as numbers and paths as names."""
    merged = {**_dict(resolved.get("upstream")), **resolved}
    options = {name: _plain(value) for name, value in merged.items() if name not in _NOT_OPTIONS}
    if isinstance(options.get("selector_path"), str):
        options["selector_path"] = checkpoint_name(options["selector_path"])
    for name in _ASKED_WITH:
        value = line.get(name, config.get(name))
        if value and (name, value) != ("repeats", 1):
            options[name] = _plain(value)
    if str(config.get("model_backend")).endswith("(simple)") and line.get("force_simple"):
        options["force_simple"] = True
    return dict(sorted(options.items()))


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return parsed if isinstance(parsed, (bool, int, float)) or value in ("None", "null") else value


def _score(file: Path, content: dict[str, Any], task: str) -> Score:
    """One task's score; what is wrong with it stands in its `problem`."""
    values, config = _dict(content["results"][task]), _dict(content["configs"].get(task))
    metric, key, value = _metric(values, config)
    score = Score(task, metric, math.nan)
    score.n, score.of = _asked(_dict(content["n-samples"].get(task)), content["config"])
    if value is None or not math.isfinite(value):
        score.problem = (
            f"{file}: {task} has no score: {metric or 'nothing'} is {'not there' if value is None else value}"
        )
        return score
    path = file.with_name(file.name.replace("_results.json", f"_samples_{task}.jsonl"))
    if path != file and path.is_file():
        score_key = str(config.get("score_key") or "score")
        task_hash = _dict(content.get("task_hashes")).get(task)
        try:
            score.samples = read_samples(path, task, metric, score_key, task_hash)
        except FlexSelectError as error:
            score.problem = str(error)
            return score
    score.points = _points(value, metric, score.samples)
    score.reported_stderr = _reported_stderr(values, key)
    if (samples := score.samples) is not None:
        score.n = score.n or len(samples.correct)
        if len(samples.correct) != score.n:
            score.problem = f"{path}: {len(samples.correct)} samples, but its results file says {score.n} of {task}"
        elif abs(100 * samples.score() - score.points) > 0.01:
            score.samples = None
            if task.startswith(_MEANS):
                made = f"{100 * samples.score():.2f}"
                score.problem = f"{path}: its samples make {made}, but its results file says {score.points:.2f}"
    if not score.n:
        score.problem = f"{file}: {task} was asked no question"
    return score


def _metric(values: dict[str, Any], config: dict[str, Any]) -> tuple[str, str, float | None]:
    """The task's first metric: its name, its key in the results, its value; None where it has none."""
    listed = [str(_dict(each).get("metric")) for each in config.get("metric_list") or []]
    names = [*listed, *dict.fromkeys(key.partition(",")[0] for key in values if "," in key and "_stderr" not in key)]
    for name in names:
        for key, value in values.items():
            if key.startswith(f"{name},") and isinstance(value, (int, float)):
                return name, key, float(value)
    return (names[0] if names else ""), "", None


def _asked(counts: dict[str, Any], config: dict[str, Any]) -> tuple[int, int]:
    """How many questions were asked, of how many; lmms-eval's "effective" knows of no offset, nor of a share."""
    of, n = counts.get("original"), counts.get("effective")
    if not isinstance(of, int) or not isinstance(n, (int, float)):
        return 0, 0
    offset = config.get("offset") or 0
    return max(0, min(math.ceil(of * n) if 0 < n < 1 else int(n), of - offset)), of


def _points(value: float, metric: str, samples: Samples | None) -> float:
    """0..100 from a score that may be a share or a percentage already."""
    if samples is not None:
        return min((100 * value, value), key=lambda points: abs(points - 100 * samples.score()))
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


def option_differences(
    expected: dict[str, Any], found: dict[str, Any], leave_out: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Options with different values, both; ``any`` in `expected` is any value, an absent option is None."""
    names = sorted({*expected, *found} - set(leave_out))
    pairs = {name: (expected.get(name), found.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] not in ("any", pair[1])}
