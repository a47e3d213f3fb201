"""Processes that share questions out, without a model: ``python -m tests.support.sharing FOLDER 2 3``.

Prints, for each way of dealing the questions out, the answers to each process's and the questions it answered.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any, NamedTuple

import torch.distributed as dist

from lmms_flexselect.models.scheduling import redistribute
from lmms_flexselect.runtime.processes import Processes

WEIGHTS = {"a": 5.0, "b": 3.0, "c": 1.0, "d": 1.0}


class Task:
    """Stands for a task of lmms-eval, which cannot be handed over itself."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def doc_to_visual(self, document: str) -> list[str]:
        """What a request carries along."""
        return [document]

    def __reduce__(self) -> Any:
        raise TypeError("a task was handed over")


class Request:
    """As much of lmms-eval's `Instance` as is looked at."""

    idx = 0

    def __init__(self, arguments: tuple[Any, ...], padding: bool = False) -> None:
        self.args = arguments
        self.metadata = {"__padding_only__": True} if padding else {}


class Dealt(NamedTuple):
    """The video of each question of a run, - for none, and what is odd about it."""

    videos: str
    padded: bool = False
    fixed: tuple[int, ...] = ()

    def paths(self, number: int) -> tuple[str, ...]:
        """What a question is about."""
        return () if self.videos[number] == "-" else (self.videos[number],)


CASES = {
    "even": Dealt("aaabbb"),
    "uneven": Dealt("aabbacd"),
    "padded": Dealt("aabbacd", padded=True),
    "one video": Dealt("aaaa", padded=True),
    "one question": Dealt("a"),
    "nothing": Dealt(""),
    "images": Dealt("-" * 11, padded=True),
    "mixed": Dealt("-a--ab-b-a-", padded=True),
    "fixed": Dealt("abcdabcd", fixed=(1, 6)),
}


def deal(case: Dealt, task: Task, rank: int, world: int) -> tuple[list[Request], list[tuple[str, ...]]]:
    """This process's requests and their videos, as lmms-eval deals and pads them."""
    numbers = list(range(rank, len(case.videos), world))
    visuals = {n: (lambda d: [d]) if n in case.fixed else task.doc_to_visual for n in range(len(case.videos))}
    after = {n: (visual, n, "task", "test") for n, visual in visuals.items()}
    requests = [Request((f"question {n}", {"n": n}, *after[n])) for n in numbers]
    most = -(-len(case.videos) // world)
    while case.padded and len(requests) < most:
        numbers.append(numbers[-1] if numbers else 0)
        requests.append(Request((f"question {numbers[-1]}", {"n": numbers[-1]}, *after[numbers[-1]]), padding=True))
    return requests, [case.paths(n) for n in numbers]


def run(case: Dealt, processes: Any, world: int) -> dict[str, Any]:
    """Share one run's questions out; see the module."""
    task, rank = Task(sys.stdout), processes.rank
    answered: list[int] = []

    def answer(requests: list[Any], videos: list[Any]) -> list[str]:
        for request, paths in zip(requests, videos, strict=True):
            text, settings, visual, n, *_ = request.args
            assert paths == case.paths(n)
            assert visual("document") == ["document"]
            assert getattr(visual, "__self__", task) is task
            assert (text, settings) == (f"question {n}", {"n": n})
            answered.append(n)
        return [f"answer {request.args[3]}" for request in requests]

    requests, videos = deal(case, task, rank, world)
    answers = redistribute(
        requests, videos, lambda paths: WEIGHTS[paths[0]] if paths else 1.0, answer, processes, {"task": task}
    )
    asked = [request.args[3] for request in requests]
    return {"asked": asked, "answers": answers, "answered": answered}


def one_of(rank: int, world: int, store: str, said: Any) -> None:
    """Run all cases in one process of a real group, and say what came of them."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    processes = Processes()
    said.put((rank, {name: run(case, processes, world) for name, case in CASES.items()}))
    dist.destroy_process_group()


def main(worlds: list[str], folder: str) -> None:
    """Groups of so many processes, one after the other; prints what each said, by its size and rank."""
    context = multiprocessing.get_context("fork")  # torch is imported once
    everything = {}
    for world in map(int, worlds):
        said = context.SimpleQueue()
        arguments = [(rank, world, f"{folder}/{world}", said) for rank in range(world)]
        members = [context.Process(target=one_of, args=of_one) for of_one in arguments]
        for member in members:
            member.start()
        of_ranks = dict(said.get() for _ in members)
        everything[world] = [of_ranks[rank] for rank in range(world)]
        for member in members:
            member.join()
    print(json.dumps(everything))


if __name__ == "__main__":
    main(sys.argv[2:], sys.argv[1])
