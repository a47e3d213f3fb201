"""The real ``lmms-eval`` command on tasks of odd kinds, in several processes, and while it is interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import odd_tasks
from tests.support.hearing import hear_ctrl_c
from tests.support.odd_tasks import document
from tests.test_command import checkpoints, results_in, run, run_in_processes

pytestmark = pytest.mark.cli
__all__ = ["checkpoints"]

QUESTIONS = 12  # of the tasks about images


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, stock_videos) -> Path:
    """Of each kind one; videos of 6 s."""
    videos = stock_videos["mlvu_dev"]
    missing = videos[0].with_name("missing.mp4")
    mixed = [document(n, videos[n // 6] if n % 6 == 5 else "", image=n % 6 < 4) for n in range(QUESTIONS)]
    of_tasks = {
        "odd_images": ("asked", [document(n, image=True) for n in range(QUESTIONS)]),
        "odd_mixed": ("asked", mixed),
        "odd_missing": ("asked", [document(0, image=True), document(1, missing)]),
        "odd_rounds": ("rounds", [document(n, videos[n], later=videos[3]) for n in range(3)]),
        "odd_rounds_missing": ("rounds", [document(0, videos[0]), document(1, missing)]),
        "odd_rounds_missing_later": ("rounds", [document(0, videos[0], later=missing)]),
        "odd_choice": ("choice", [document(n, videos[n // 2]) for n in range(4)]),
        "odd_sampled": ("sampled", [document(n, videos[n // 2]) for n in range(4)]),
    }
    return odd_tasks.write(tmp_path_factory.mktemp("tasks"), of_tasks)


def block_of(folder: Path) -> dict[str, Any]:
    (results,) = results_in(folder)
    return results["config"]["resolved_cli_args"]["flexselect"]


def samples_of(folder: Path) -> list[dict[str, Any]]:
    """Of the one task that was run there."""
    (path,) = folder.rglob("*_samples_*.jsonl")
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def timeless(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block["overall"].items() if "seconds" not in name and "memory" not in name}


@pytest.fixture(scope="module")
def odd(tmp_path_factory, checkpoints, tasks):
    """One process, one run after the other; the folder of their results, and what was said."""
    folder = tmp_path_factory.mktemp("odd")
    qwen, llava, internvl = (checkpoints[name] for name in ("qwen2_5_vl", "llava_vid", "internvl_hf"))
    lenient = f"{qwen},strict=false"

    def of(name: str, model: str, arguments: str, task: str, **options: Any) -> dict[str, Any]:
        output = {"output_path": str(folder / name), "log_samples": True, "include_path": str(tasks)}
        return {"model": f"{model}_flexselect", "model_args": arguments, "tasks": task, **output, **options}

    def twice(name: str, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
        cached = {**options, "use_cache": str(folder / f"cache_{name}")}
        return [of(f"{name}_{n}", *arguments, **cached) for n in ("first", "again")]

    runs = [
        of("repeats", "qwen2_5_vl", qwen, "odd_sampled", repeats=3, batch_size=2),
        *[of(f"mixed_{size}", "qwen2_5_vl", qwen, "odd_mixed", batch_size=size) for size in (1, 3)],
        of("missing", "qwen2_5_vl", qwen, "odd_missing"),
        *twice("rounds", "qwen2_5_vl", qwen, "odd_rounds", force_simple=True, batch_size=2),
        of("rounds_chat", "qwen2_5_vl", qwen, "odd_rounds"),
        of("rounds_missing", "qwen2_5_vl", qwen, "odd_rounds_missing", force_simple=True),
        of("rounds_later", "qwen2_5_vl", qwen, "odd_rounds_missing_later", force_simple=True),
        *twice("rounds_lenient", "qwen2_5_vl", lenient, "odd_rounds_missing_later", force_simple=True),
        of("rounds_internvl", "internvl_hf", internvl, "odd_rounds"),
        of("choice", "llava_vid", llava, "odd_choice"),
        *twice("choice", "llava_vid", llava, "odd_choice"),
        *twice("internvl", "internvl_hf", internvl, "mlvu_dev"),
        *twice("llava", "llava_vid", llava, "mlvu_dev"),
    ]
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    return folder, run([sys.executable, "-m", "lmms_eval", "--config", "runs.yaml"], folder, timeout=2400).stdout


def test_each_repeat_is_an_answer(odd):
    folder, said = odd
    block = block_of(folder / "repeats")
    assert block["overall"]["samples"] == 12, said[-3000:]
    samples = samples_of(folder / "repeats")
    (results,) = results_in(folder / "repeats")
    # Four tokens each, if none ends before: more than four answers' worth in any case.
    assert results["throughput"]["total_gen_tokens"] > 16
    assert len(samples) == 4
    assert all(sample["token_counts"][0]["input_tokens"] > 24 for sample in samples)


def test_what_a_batch_is_made_of_changes_no_mean(odd):
    folder, _ = odd
    one, three = (timeless(block_of(folder / f"mixed_{size}")) for size in (1, 3))
    assert one == pytest.approx(three)
    assert one["samples"] == QUESTIONS
    assert one["position_span"] > 20  # of the two prompts with a video; the others have none


def test_a_document_behind_one_without_video_is_looked_at_before_anything_is_computed(odd):
    folder, said = odd
    assert results_in(folder / "missing") == []
    assert "missing.mp4: no such video file" in said


def test_rounds_are_recorded_and_kept(odd):
    """Documents 0 and 2 have two rounds, document 1 has three."""
    folder, _ = odd
    first, again = (block_of(folder / f"rounds_{name}") for name in ("first", "again"))
    assert [block["overall"]["samples"] for block in (first, again)] == [7, 0]
    samples, cached = (samples_of(folder / f"rounds_{name}") for name in ("first", "again"))
    assert [len(sample["filtered_resps"]) for sample in samples] == [2, 3, 2]
    assert [sample["filtered_resps"] for sample in samples] == [sample["filtered_resps"] for sample in cached]
    assert results_in(folder / "rounds_first")[0]["results"] == results_in(folder / "rounds_again")[0]["results"]
    counts = [sample["token_counts"][0]["input_tokens"] for sample in samples]
    assert counts[1] > 1.3 * counts[0]
    total = first["overall"]["input_tokens"] * 7
    assert sum(counts) == pytest.approx(total)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("rounds_chat", "qwen2_5_vl: lmms-eval's chat class cannot answer multi-round tasks; give --force_simple"),
        ("rounds_missing", "missing.mp4: no such video file"),
        ("rounds_later", "missing.mp4: no such video file"),
        ("rounds_internvl", "internvl_hf: lmms-eval's class does not answer generate_until_multi_round requests"),
    ],
)
def test_rounds_that_cannot_be_answered_end_in_one_line(odd, name, wanted):
    folder, said = odd
    assert results_in(folder / name) == []
    assert any(wanted in line and "ERROR" in line for line in said.splitlines())


def test_what_was_answered_empty_in_one_round_is_not_kept(odd):
    folder, _ = odd
    for name in ("first", "again"):
        block = block_of(folder / f"rounds_lenient_{name}")
        assert (block["overall"]["samples"], block["overall"]["unreadable_videos"]) == (2, 1)
        (sample,) = samples_of(folder / f"rounds_lenient_{name}")
        first, later = sample["filtered_resps"]
        assert first
        assert later == ""


def test_likelihoods_are_recorded_and_kept(odd):
    folder, _ = odd
    plain, first, again = (folder / name for name in ("choice", "choice_first", "choice_again"))
    assert [block_of(of)["overall"]["samples"] for of in (plain, first, again)] == [12, 12, 0]
    assert results_in(plain)[0]["results"] == results_in(first)[0]["results"] == results_in(again)[0]["results"]
    given = [[sample["filtered_resps"] for sample in samples_of(of)] for of in (plain, first, again)]
    assert given[0] == given[1] == given[2]
    assert all(len(pair) == 2 for of_one in given[0] for pair in of_one)


@pytest.mark.parametrize("name", ["internvl", "llava"])
def test_a_second_run_comes_out_of_the_cache(odd, name):
    folder, _ = odd
    first, again = (folder / f"{name}_{which}" for which in ("first", "again"))
    assert [block_of(of)["overall"]["samples"] for of in (first, again)] == [4, 0]
    assert results_in(first)[0]["results"] == results_in(again)[0]["results"]


@pytest.mark.parametrize(
    ("task", "options", "least"),
    [("odd_images", [], 4), ("odd_mixed", [], 1), ("odd_rounds", ["--force_simple"], 1)],
)
def test_processes_share_out_whatever_is_asked(tmp_path, checkpoints, tasks, task, options, least):
    arguments = ["--model", "qwen2_5_vl_flexselect", "--model_args", checkpoints["qwen2_5_vl"], "--tasks", task]
    arguments += ["--include_path", str(tasks), "--output_path", str(tmp_path), "--log_samples", *options]
    done = run_in_processes(3, arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = re.findall(r"process (\d) answers (\d+) question", done.stdout + done.stderr)
    assert sorted(rank for rank, _ in shares) == ["0", "1", "2"]
    questions = 3 if task == "odd_rounds" else QUESTIONS
    assert sum(int(number) for _, number in shares) == questions
    assert min(int(number) for _, number in shares) >= least
    assert block_of(tmp_path)["overall"]["samples"] == (7 if task == "odd_rounds" else QUESTIONS)
    assert len(samples_of(tmp_path)) == questions


def test_a_missing_video_of_a_task_of_rounds_stops_all_processes(tmp_path, checkpoints, tasks):
    arguments = ["--model", "qwen2_5_vl_flexselect", "--model_args", checkpoints["qwen2_5_vl"], "--force_simple"]
    arguments += ["--tasks", "odd_rounds_missing", "--include_path", str(tasks), "--output_path", str(tmp_path)]
    done = run_in_processes(2, arguments, tmp_path)
    assert done.returncode != 0
    assert "missing.mp4: no such video file" in done.stderr
    assert results_in(tmp_path) == []


@pytest.fixture
def stuck(tmp_path, checkpoints, stock_videos):
    """A run whose third video's decoder is stuck: what starts it, and its results' folder; it is ended in the end."""
    videos = [tmp_path / name for name in ("0.mp4", "1.mp4", "stuck.mp4")]
    for video, source in zip(videos, stock_videos["mlvu_dev"], strict=False):
        shutil.copy2(source, video)
    documents = [document(n, video) for n, video in enumerate(videos)]
    tasks = odd_tasks.write(tmp_path / "tasks", {"odd_stuck": ("asked", documents)})
    arguments = ["--model", "qwen2_5_vl_flexselect", "--tasks", "odd_stuck", "--include_path", str(tasks)]
    arguments += ["--use_cache", str(tmp_path / "cache"), "--output_path", str(tmp_path / "out"), "--log_samples"]
    started: list[subprocess.Popen[str]] = []

    def start(options: str, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, "-m", "lmms_eval", *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with (tmp_path / "said").open("w") as said:
            started.append(
                subprocess.Popen(
                    [*command, "--model_args", f"{checkpoints['qwen2_5_vl']},{options}"],
                    cwd=tmp_path,
                    env=env,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    text=True,
                    preexec_fn=hear_ctrl_c,
                    start_new_session=True,  # so that a signal can be sent to all, as a terminal does
                )
            )
        return started[-1]

    yield start, tmp_path
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_stuck(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the decoder is, and the two questions before were answered."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        said = (folder / "said").read_text()
        if "reading what is stuck" in said and re.search(r"Model Responding:\s+67%", said):
            return
        time.sleep(0.2)
    raise AssertionError((folder / "said").read_text()[-3000:])


@pytest.mark.parametrize(("number", "ahead"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_ends_a_run_within_seconds_and_what_was_finished_is_kept(stuck, number, ahead):
    start, folder = stuck
    process = start(f"prefetch_videos={ahead}")
    wait_until_stuck(folder, process)
    process.send_signal(number)
    status = process.wait(timeout=15)
    assert status in (-number, 128 + number), (folder / "said").read_text()[-3000:]
    assert results_in(folder / "out") == []
    # The decoder is well again: two answers are there, one is computed.
    good = folder / "tasks" / "utils.py"
    good.write_text(good.read_text().replace('"stuck" in', '"never" in'))
    assert start("prefetch_videos=" + str(ahead)).wait(timeout=600) == 0
    assert block_of(folder / "out")["overall"]["samples"] == 1, (folder / "said").read_text()[-3000:]
    assert len(samples_of(folder / "out")) == 3
