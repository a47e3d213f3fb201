"""Whole videos to processes: each question is answered once, and by the process that has its video."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from lmms_flexselect.models import running
from lmms_flexselect.models.requests import check_videos
from lmms_flexselect.models.scheduling import Offer, assign_processes, pack, unpack, without_padding
from tests.support.evaluate import build
from tests.support.sharing import CASES, WEIGHTS, Dealt, Request, Task, run


class Threads:
    """Threads in place of processes: a rank in each, and a table where all lay down what they say."""

    def __init__(self, world):
        self._said = [None] * world
        self._barrier = threading.Barrier(world, timeout=20)
        self._own = threading.local()

    def begin(self, rank):
        self._own.rank = rank
        return self

    @property
    def rank(self):
        return self._own.rank

    def gather(self, said):
        self._said[self.rank] = said
        self._barrier.wait()
        everyone = list(self._said)
        self._barrier.wait()
        return everyone


def in_threads(case, world):
    threads = Threads(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: run(case, threads.begin(rank), world), range(world)))


def check(case, ranks):
    for rank, got in enumerate(ranks):
        assert got["answers"] == [f"answer {n}" for n in got["asked"]]
        own = set(range(rank, len(case.videos), len(ranks)))
        assert set(got["asked"]) == (own or {0} if case.padded else own)
    answered = [n for got in ranks for n in got["answered"]]
    assert sorted(answered) == list(range(len(case.videos)))
    for rank, got in enumerate(ranks):
        assert all(n in got["answered"] for n in case.fixed if n % len(ranks) == rank)
        assert got["answered"] == sorted(got["answered"])
    of_fixed = {case.videos[n] for n in case.fixed} | {"-"}
    places = {(case.videos[n], rank) for rank, got in enumerate(ranks) for n in got["answered"]}
    without = [sum(case.videos[n] == "-" for n in got["answered"]) for got in ranks]
    if set(case.videos) == {"-"}:
        assert max(without) - min(without) <= 1
    alone = [video for video, _ in places if video not in of_fixed]
    assert len(alone) == len(set(alone))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_every_question_is_answered_once_and_comes_home(name, world):
    check(CASES[name], in_threads(CASES[name], world))


def test_padding_weighs_nothing():
    """The second of two processes has b twice, once as padding: it is shorter than a all the same."""
    case = Dealt("acdbc", padded=True)
    loads = [sum(WEIGHTS[case.videos[n]] for n in got["answered"]) for got in in_threads(case, 2)]
    assert sorted(loads) == [5, 6]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_dealt_out(seed):
    draw = random.Random(seed)
    videos = "".join(draw.choices("abcd", k=draw.randrange(20)))
    fixed = tuple(n for n in range(len(videos)) if draw.random() < 0.1)
    case = Dealt(videos, padded=bool(seed % 2), fixed=fixed)
    check(case, in_threads(case, draw.choice([2, 3, 4])))


def test_real_processes_share_out_alike(tmp_path):
    """Two and three of them, on gloo."""
    arguments = [sys.executable, "-m", "tests.support.sharing", str(tmp_path), "2", "3"]
    done = subprocess.run(
        arguments, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {world: len(ranks) for world, ranks in said.items()} == {"2": 2, "3": 3}
    for ranks in said.values():
        for name, case in CASES.items():
            of_case = [of_rank[name] for of_rank in ranks]
            check(case, of_case)
            assert of_case == in_threads(case, len(ranks))


def offers(*ranks):
    """Of each process, questions written as video and weight; in capitals if they cannot move, - for no video."""

    def offer(text, *place):
        videos = () if text[0] == "-" else (text[0].lower(),)
        return Offer(videos, float(text[1:]), not text[0].isupper(), ("", *map(str, place)))

    return [[offer(text, i, rank) for i, text in enumerate(of_rank)] for rank, of_rank in enumerate(ranks)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # The longest first, each to who has the least to do.
        ((["a9", "b5", "c4"], ["d1"]), [[0, 1, 1], [1]]),
        # Weights of a video add up over its questions, wherever they are: a is 12, b 10.
        ((["a6", "b10"], ["a6"]), [[0, 1], [0]]),
        # As much either way: to where more of its questions are.
        ((["a1", "b1"], ["b1", "b1", "a1", "a1"]), [[1, 0], [0, 0, 1, 1]]),
        # What cannot move counts as work, and holds its video.
        ((["A1", "b9"], ["a5", "c2"]), [[0, 1], [0, 0]]),
        ((["A1", "a1"], ["A1", "A1"]), [[0, 1], [1, 1]]),
        (([], ["a1", "b1"]), [[], [1, 0]]),
        # About no video: each by itself, and home if that is as good.
        ((["-1", "-2", "-3"], []), [[1, 1, 0], []]),
        ((["-1", "-1"], ["-1", "-1"]), [[0, 0], [1, 1]]),
        ((["-1", "-1", "a9"], ["b1", "-1"]), [[1, 1, 0], [1, 1]]),
        (([], []), [[], []]),
    ],
)
def test_who_answers_what(given, expected):
    assert assign_processes(offers(*given)) == expected


@pytest.mark.parametrize("world", [2, 3, 8])
def test_no_process_has_much_more_to_do_than_another(world):
    draw = random.Random(0)
    weights = {f"video{n}": draw.uniform(1, 60) for n in range(100)}
    dealt = [
        [Offer((video,), w) for video, w in weights.items() for _ in range(3)][rank::world] for rank in range(world)
    ]
    loads = [0.0] * world
    for of_rank, of_offers in zip(assign_processes(dealt), dealt, strict=True):
        for rank, offer in zip(of_rank, of_offers, strict=True):
            loads[rank] += offer.weight
    assert max(loads) <= 1.02 * sum(loads) / world


def test_padding_takes_the_answer_of_what_it_is_a_copy_of():
    def made(text, document, padding=False):
        return Request((text, {}, len, document, "task", "test"), padding)

    copies = [made("three", 3, True), made("two", 2, True), made("two", 2, True), made("three", 3, True)]
    # The same request twice is two samples of an answer; another text is another question.
    requests = [copies[0], made("one", 1), made("one", 1), made("two", 2), made("or two", 2), *copies[1:]]
    asked, takes = without_padding(requests)
    assert asked == [1, 2, 3, 4, 0]
    assert takes == [4, 0, 1, 2, 3, 2, 2, 4]


def test_a_request_finds_the_task_of_the_other_process():
    here, there = Task("here"), Task("there")
    packed = pack(SimpleNamespace(arguments=("text", {"n": 1}, here.doc_to_visual, here)), {"task": here})
    assert packed is not None
    text, settings, visual, task = unpack(packed, {"task": there}).arguments
    assert (text, settings, task) == ("text", {"n": 1}, there)
    assert visual.__self__ is there


@pytest.mark.parametrize("kept", [lambda d: d, Task("unknown").doc_to_visual, threading.Lock()])
def test_what_cannot_go_stays(kept):
    assert pack(Request(("text", kept)), {"task": Task("here")}) is None


@pytest.fixture
def one_of_two(monkeypatch, llava_checkpoint):
    """A model that takes itself for one of two processes, with two tasks of lmms-eval's evaluator."""
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, max_frames_num=16)
    tasks = {"asks": SimpleNamespace(OUTPUT_TYPE="generate_until")}
    tasks["acts"] = SimpleNamespace(OUTPUT_TYPE="generate_until_agentic")
    monkeypatch.setattr(running, "our_tasks", lambda: tasks)
    model._processes = [0, 1]
    return model


def asked_of(task):
    return [Request(("question", {}, len, 0, task, "test"))]


def test_requests_are_shared_out_only_where_all_processes_ask_alike(monkeypatch, one_of_two):
    assert one_of_two._regroups([])
    assert one_of_two._regroups(asked_of("asks"))
    assert not one_of_two._regroups(asked_of("acts"))
    for kind, shared in (("MULTI_GPU", True), ("MULTI_CPU", True), ("FSDP", False), ("DEEPSPEED", False)):
        one_of_two.accelerator = SimpleNamespace(distributed_type=DistributedType(kind))
        assert one_of_two._regroups(asked_of("asks")) is shared
    del one_of_two.accelerator
    monkeypatch.setattr(running, "our_tasks", dict)
    assert not one_of_two._regroups(asked_of("asks"))


def test_a_process_that_the_cache_does_not_ask_joins_once(monkeypatch, one_of_two):
    joined = []
    monkeypatch.setattr(one_of_two, "_run", lambda kind, requests: joined.append((kind, requests)))
    for kind in ("generate_until", "generate_until_multi_round", "loglikelihood"):
        one_of_two.after_response_cache(kind, asked_of("asks"))
        assert joined.pop() == (kind, [])
        one_of_two._joined = True  # it was asked, and took part
        one_of_two.after_response_cache(kind, asked_of("asks"))
        assert joined == []
        one_of_two.after_response_cache(kind, [])
        assert joined.pop() == (kind, [])
    one_of_two.after_response_cache("generate_until", asked_of("acts"))
    assert joined == []


def test_a_video_weighs_as_much_as_is_read_of_it(one_of_two, stock_videos, tmp_path):
    """6 seconds are 6 frames to LLaVA-Video; of what cannot be read nothing is."""
    good, bad = str(stock_videos["mlvu_dev"][0]), tmp_path / "bad.mp4"
    bad.write_bytes(b"text")
    paths = [(good,), (str(bad),), (str(tmp_path),)]
    one_of_two._lengths = check_videos(paths, one_of_two._check_video, strict=False)
    assert one_of_two._weight((good,)) == 6.0
    assert one_of_two._weight((good, good, str(bad))) == 13.0
    assert one_of_two._weight((str(bad),)) == one_of_two._weight((str(tmp_path),)) == one_of_two._weight(()) == 1.0
    one_of_two.max_frames_num = 4
    assert one_of_two._weight((good,)) == 4.0
