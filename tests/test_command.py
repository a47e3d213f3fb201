"""The real ``lmms-eval`` command. It exits 0 on failure, so every test looks for the results file."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.installed import installed_path
from lmms_flexselect.tools.scores import check, read_runs, record
from lmms_flexselect.tools.scores.rows import compare
from tests.support.internvl_checkpoint import write_original

pytestmark = pytest.mark.cli

SELECT = (
    "max_num_frames=16,min_pixels=3136,max_pixels=9408,token_budget=24,max_frames_per_set=4,reference_layer=3,"
    "dtype=float32"
)
# Stock videos last 6 s: 6 frames of 6 tokens.
LLAVA = "max_frames_num=16,token_budget=12,max_frames_per_set=4,reference_layer=3,dtype=float32"
# 6 frames of 4 tokens and two marks.
INTERNVL = "num_frames=6,token_budget=12,max_frames_per_set=3,reference_layer=2,dtype=float32"


def run(
    arguments: list[str], folder: Path, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    # One thread a process: two of them share two cores.
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def run_in_processes(number: int, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in several processes, on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={number}", f"--master_port={port}"]
    return run([*launcher, "-m", "lmms_eval", *arguments], folder, ACCELERATE_USE_CPU="true")


def results_in(folder: Path, tail: str = "") -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(folder.rglob("*_results.json"), key=lambda p: p.stat().st_mtime)]


@pytest.fixture(scope="module")
def checkpoints(random_checkpoint, llava_checkpoint, tmp_path_factory):
    """Of each model: where its checkpoint is, and arguments that fit it."""
    internvl = write_original(tmp_path_factory.mktemp("checkpoints") / "internvl", "internlm2")
    return {
        "qwen2_5_vl": f"pretrained={random_checkpoint},{SELECT}",
        "llava_vid": f"pretrained={llava_checkpoint},{LLAVA}",
        "internvl_hf": f"pretrained={internvl},{INTERNVL}",
    }


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, checkpoints, stock_videos, paper_data):
    """Runs of the command in one process, by a config file: families, chat and simple, selecting and not, cached."""
    folder = tmp_path_factory.mktemp("command")
    base = {
        "model": "qwen2_5_vl_flexselect",
        "tasks": ",".join(stock_videos),
        "batch_size": 1,
        "log_samples": True,
    }
    selected = checkpoints["qwen2_5_vl"]
    runs = [
        {**base, "model_args": f"{selected},dump_selection={folder / 'dump'}", "output_path": str(folder / "chat")},
        {**base, "model_args": f"{selected},selector=none", "output_path": str(folder / "none")},
        {**base, "model_args": selected, "force_simple": True, "output_path": str(folder / "simple")},
        {**base, "model_args": f"{selected},token_budget=0", "output_path": str(folder / "refused")},
        {
            **base,
            "tasks": "flexselect_paper,flexselect_paper_longvideobench_sub",
            "include_path": str(installed_path("tasks")),
            "model_args": selected,
            "output_path": str(folder / "paper"),
        },
        *[
            {
                **base,
                "tasks": "lvbench",
                "model_args": selected,
                "use_cache": str(folder / "cache"),
                "output_path": str(folder / name),
            }
            for name in ("first", "cached")
        ],
        *[
            {
                **base,
                "model": f"{model}_flexselect",
                "model_args": f"{checkpoints[model]},{own}",
                "output_path": str(folder / f"{model}_{name}"),
            }
            for model, name, own in (
                ("llava_vid", "flexselect", f"dump_selection={folder / 'llava_vid_dump'}"),
                ("llava_vid", "none", "selector=none"),
                ("llava_vid", "refused", "conv_template=vicuna_v1"),
                ("internvl_hf", "flexselect", f"dump_selection={folder / 'internvl_hf_dump'}"),
                ("internvl_hf", "none", "selector=none"),
                ("internvl_hf", "refused", "frame_labels=some"),
            )
        ],
    ]
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    done = run([sys.executable, "-m", "lmms_eval", "--config", "runs.yaml"], folder)
    return folder, done


def test_four_stock_tasks_through_the_command(one_process, stock_videos):
    folder, done = one_process
    for name, backend, kept in (("chat", "(chat)", 24), ("none", "(chat)", 96), ("simple", "(simple)", 24)):
        (results,) = results_in(folder / name)
        assert set(results["results"]) == set(stock_videos), done.stdout[-3000:]
        assert results["config"]["model_backend"].endswith(backend)
        block = results["config"]["resolved_cli_args"]["flexselect"]
        assert block["options"]["token_budget"] == 24
        assert block["options"]["upstream"]["max_num_frames"] == "16"
        assert block["options"]["reference_layer"] == 3
        assert block["overall"]["samples"] == 16
        assert block["unreadable"] == []
        for task in stock_videos:
            assert block["by_task"][task]["visual_tokens_kept"] == kept
        assert results["throughput"]["avg_time_to_first_token_seconds"] > 0
        assert results["throughput"]["total_elapsed_time"] > 0
        assert len(list((folder / name).rglob("*_samples_*.jsonl"))) == 4


def test_the_papers_tasks_through_the_command(one_process):
    folder, done = one_process
    (results,) = results_in(folder / "paper")
    metrics = {
        "videomme": "videomme_perception_score",
        "mlvu": "mlvu_percetion_score",
        "longvideobench": "lvb_acc",
        "longvideobench_sub": "lvb_acc",
        "lvbench": "lvbench_score",
    }
    for task, metric in metrics.items():
        scores = results["results"][f"flexselect_paper_{task}"]
        assert scores[f"{metric},none"] >= 0, done.stdout[-3000:]
        # Every stand-in is about two videos or more.
        assert scores[f"{metric}_stderr_clustered,none"] != "N/A"
        assert results["config"]["resolved_cli_args"]["flexselect"]["by_task"][f"flexselect_paper_{task}"]
        (path,) = (folder / "paper").rglob(f"*_samples_flexselect_paper_{task}.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        assert [sample[metric]["score"] in (0.0, 1.0) for sample in samples] == [True] * 4
        tokens = [sample["token_counts"][0]["output_tokens"] for sample in samples]
        assert max(tokens) <= (16 if task == "mlvu" else 1)
    assert "videomme_long_perception_score,none" in results["results"]["flexselect_paper_videomme"]


@pytest.mark.parametrize(
    ("model", "upstream", "refused", "right"),
    [
        ("llava_vid", {"conv_template": "qwen_1_5"}, "conv_template=vicuna_v1", "must be one of qwen_1_5, qwen_2"),
        ("internvl_hf", {"num_frames": "6"}, "frame_labels=some", "must be one of numbered, bare"),
    ],
)
def test_other_families_through_the_command(one_process, stock_videos, model, upstream, refused, right):
    folder, done = one_process
    for name, kept in (("flexselect", 12), ("none", 36)):
        (results,) = results_in(folder / f"{model}_{name}")
        assert set(results["results"]) == set(stock_videos), done.stdout[-3000:]
        block = results["config"]["resolved_cli_args"]["flexselect"]
        assert block["options"]["selector"] == name
        assert block["options"]["upstream"].items() >= upstream.items()
        assert block["overall"]["samples"] == 16
        assert block["unreadable"] == []
        for task in stock_videos:
            assert block["by_task"][task]["visual_tokens_kept"] == kept
        assert results["throughput"]["avg_time_to_first_token_seconds"] > 0
        samples = [json.loads(line) for p in (folder / f"{model}_{name}").rglob("*.jsonl") for line in p.open()]
        assert len(samples) == 16
        assert not any("can not load" in str(sample["filtered_resps"]) for sample in samples)
    assert len(list((folder / f"{model}_dump").iterdir())) == 16
    assert results_in(folder / f"{model}_refused") == []
    (line,) = [line for line in done.stdout.splitlines() if refused in line and "ERROR" in line]
    assert right in line


def test_a_run_out_of_the_cache_says_its_options_too(one_process):
    folder, _ = one_process
    first, cached = (results_in(folder / name)[0] for name in ("first", "cached"))
    blocks = [results["config"]["resolved_cli_args"]["flexselect"] for results in (first, cached)]
    assert blocks[0]["options"] == blocks[1]["options"]
    assert [block["overall"]["samples"] for block in blocks] == [4, 0]
    assert first["results"] == cached["results"]


def test_scores_of_real_runs(one_process, stock_videos, tmp_path):
    folder, _ = one_process
    chat, none = folder / "chat", folder / "none"
    runs = record([chat, none, folder / "simple"], tmp_path / "expect.yaml")
    assert [(run.selector, run.options.get("force_simple")) for run in runs] == [
        ("flexselect", True),
        ("flexselect", None),
        ("none", None),
    ]
    for run in runs:
        assert (run.model, set(run.scores)) == ("qwen2_5_vl_flexselect", set(stock_videos))
        assert run.options["max_num_frames"] == 16
        assert set(run.versions) == {"lmms_eval", "lmms_flexselect", "torch", "transformers"}
        assert all(score.samples is not None and score.n == score.of == 4 for score in run.scores.values())
    assert str(folder) not in (tmp_path / "expect.yaml").read_text()
    report = check([chat, none, folder / "simple"], tmp_path / "expect.yaml")
    assert (report.passed, len(report.cases), report.notes) == (True, 12, [])
    # Another run's results under the first one's name: options tell.
    report = check([none], tmp_path / "expect.yaml")
    assert [case.outcome for case in report.cases] == ["error"] * 8 + ["same"] * 4
    rows = compare([chat], none)
    assert [row.score.task for row in rows] == [
        task for name in sorted(stock_videos) for task in ((name, "videomme, long") if name == "videomme" else (name,))
    ]
    assert all(row.difference is not None and row.difference.p_value is not None for row in rows)
    assert [row.score.n for row in rows if row.score.task == "videomme, long"] == [1]


def test_scores_of_runs_that_failed_or_ran_twice(one_process, tmp_path):
    folder, _ = one_process
    record([folder / "first"], tmp_path / "expect.yaml")
    assert check([folder / "cached"], tmp_path / "expect.yaml").passed
    (case,) = check([folder / "refused"], tmp_path / "expect.yaml").cases
    assert (case.outcome, "lmms-eval exits with 0" in case.reason) == ("error", True)
    with pytest.raises(FlexSelectError, match=r"has lvbench twice, with the same options: .*first/.* and .*cached/"):
        read_runs([folder / "first", folder / "cached"])


def test_what_was_kept_is_dumped(one_process, stock_videos):
    folder, _ = one_process
    dumped = sorted((folder / "dump").iterdir())
    assert len(dumped) == 16
    for path in dumped:
        arrays, sample = read_selection(path)
        assert arrays["kept"].sum() == 24
        assert len(arrays["kept"]) == len(arrays["scores"]) == len(arrays["frame"]) == 96
        assert path.name == f"{sample['task']}__{sample['split']}__{sample['doc_id']}.npz"
        assert len(sample["videos"][0]["frames_indices"]) == 16


def test_a_refused_option_ends_in_one_line_and_no_results(one_process):
    folder, done = one_process
    assert results_in(folder / "refused") == []
    lines = [line for line in done.stdout.splitlines() if "token_budget=0" in line and "ERROR" in line]
    assert len(lines) == 1
    assert "must be a whole number of at least 1" in lines[0]


@pytest.mark.parametrize(
    ("model", "alone", "kept", "processes", "limit", "cached"),
    [
        ("qwen2_5_vl", "chat", 24, 3, 3, False),
        # Three questions over two processes, so that one is padded.
        ("llava_vid", "llava_vid_flexselect", 12, 2, 3, False),
        # Two over three: one has none, and the cache would not even ask it.
        ("internvl_hf", "internvl_hf_flexselect", 12, 3, 2, True),
    ],
)
def test_several_processes_give_the_results_of_one(
    one_process, tmp_path, checkpoints, model, alone, kept, processes, limit, cached
):
    """And each video is read by one of them: VideoMME's first three questions are about the same."""
    tasks = ("mlvu_dev", "videomme")
    arguments = ["--model", f"{model}_flexselect", "--model_args", checkpoints[model]]
    arguments += ["--tasks", ",".join(tasks), "--limit", str(limit), "--output_path", str(tmp_path), "--log_samples"]
    arguments += ["--use_cache", str(tmp_path / "cache")] if cached else []
    done = run_in_processes(processes, arguments, tmp_path)
    (results,) = results_in(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    overall = results["config"]["resolved_cli_args"]["flexselect"]["overall"]
    assert overall["samples"] == 2 * limit
    assert overall["visual_tokens_kept"] == kept
    line = r"process (\d) answers (\d) question\(s\) about (\d) video\(s\)"
    shares = [tuple(map(int, found)) for found in re.findall(line, done.stdout + done.stderr)]
    assert sorted(rank for rank, *_ in shares) == list(range(processes))
    assert sum(questions for _, questions, _ in shares) == 2 * limit
    assert sum(videos for *_, videos in shares) == limit + 1
    assert max(questions for _, questions, _ in shares) == limit

    def answers(folder, task):
        (path,) = folder.rglob(f"*_samples_{task}.jsonl")
        samples = map(json.loads, path.read_text().splitlines())
        return {s["doc_id"]: (s["filtered_resps"], s["token_counts"]) for s in samples}

    for task in tasks:
        expected = answers(one_process[0] / alone, task)
        assert answers(tmp_path, task) == {doc: expected[doc] for doc in range(limit)}


# Python runs this at its start. A video's pictures then never come, like those of a file that a decoder spins on.
_HANGING = """
import os, threading
import av
opened = av.open
def hanging(path, *arguments, **options):
    container = opened(path, *arguments, **options)
    if str(path) == os.environ["HANGING_VIDEO"] and seen.append(path) is None and len(seen) % 2 == 0:
        threading.Event().wait()
    return container
seen = []
av.open = hanging
"""


def test_a_video_that_hangs_ends_a_strict_run_and_no_other(tmp_path, checkpoints, stock_videos):
    """Its packets can be looked at, which is what a strict run does first; then decoding it comes to a halt."""
    (tmp_path / "sitecustomize.py").write_text(_HANGING)
    base = {"model": "qwen2_5_vl_flexselect", "tasks": "lvbench", "batch_size": 1, "log_samples": True}
    own = f"{checkpoints['qwen2_5_vl']},video_timeout=3"
    runs = [
        {**base, "model_args": f"{own},strict={strict}", "output_path": str(tmp_path / name)}
        for name, strict in (("lenient", False), ("strict", True))
    ]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    video = str(stock_videos["lvbench"][1])
    done = run(
        [sys.executable, "-m", "lmms_eval", "--config", "runs.yaml"],
        tmp_path,
        PYTHONPATH=str(tmp_path),
        HANGING_VIDEO=video,
    )
    said = f"{video}: reading it came to a halt, no frame or packet for 3 s"
    (lenient,) = results_in(tmp_path / "lenient")
    found = lenient["config"]["resolved_cli_args"]["flexselect"]
    assert found["overall"]["samples"] > len(found["unreadable"]) == 1
    assert said in json.dumps(found["unreadable"])
    assert results_in(tmp_path / "strict") == []
    assert [line for line in done.stdout.splitlines() if said in line and "ERROR" in line]


def test_a_bad_video_stops_all_processes(tmp_path, checkpoints, stock_videos):
    """Left to itself, lmms-eval would go on in the process that failed and wait for it in the others."""
    video = stock_videos["mlvu_dev"][1]
    content = video.read_bytes()
    arguments = ["--model", "qwen2_5_vl_flexselect", "--model_args", checkpoints["qwen2_5_vl"]]
    arguments += ["--tasks", "mlvu_dev", "--output_path", str(tmp_path)]
    video.write_bytes(b"")
    try:
        done = run_in_processes(2, arguments, tmp_path)
    finally:
        video.write_bytes(content)
    assert done.returncode != 0
    assert f"{video}: the video file is empty" in done.stderr
    assert results_in(tmp_path) == []
