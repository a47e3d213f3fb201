"""Whole videos to processes: lmms-eval deals questions out one by one, so that one video's go to all of them.

The processes tell each other what they were given, work out the same distribution each for itself, hand over the
requests, and hand back the answers. All take part in every step, also one with nothing to ask or to answer.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger

from lmms_flexselect.models.requests import Paths, take_apart
from lmms_flexselect.runtime.processes import Processes


@dataclass(frozen=True)
class Offer:
    """What a process tells of one of its requests.

    Attributes
    ----------
    videos
        What it is about; requests about the same go to one process.
    weight
        How long it takes, in any unit.
    movable
        Whether another process can answer it.
    name
        What it is told by if it is about no video: it then goes by itself, its copies alone with it.
    """

    videos: Paths
    weight: float
    movable: bool = True
    name: tuple[str, ...] = ()


def assign_processes(offers: Sequence[Sequence[Offer]]) -> list[list[int]]:
    """Which process answers each request of each process.

    The longest videos are dealt out first, each to the process with the least to do so far; of several with as little
    to the one that has most of its questions already. A request that cannot move stays, and its video goes there.
    """
    loads = [0.0] * len(offers)
    weights: dict[Paths, float] = {}
    at_home: dict[Paths, Counter[int]] = {}
    tied: dict[Paths, Counter[int]] = {}
    for rank, of_rank in enumerate(offers):
        for offer in of_rank:
            key = offer.videos or offer.name
            at_home.setdefault(key, Counter())[rank] += 1
            if offer.movable:
                weights[key] = weights.get(key, 0.0) + offer.weight
            else:
                loads[rank] += offer.weight
                tied.setdefault(key, Counter())[rank] += 1
    owner: dict[Paths, int] = {}
    for key in sorted(weights, key=lambda k: (k not in tied, -weights[k], k)):
        if key in tied:
            owner[key] = tied[key].most_common(1)[0][0]
        else:
            owner[key] = min(range(len(loads)), key=lambda rank: (loads[rank], -at_home[key][rank], rank))
        loads[owner[key]] += weights[key]
    return [
        [owner[offer.videos or offer.name] if offer.movable else rank for offer in of_rank]
        for rank, of_rank in enumerate(offers)
    ]


def redistribute(
    requests: Sequence[Any],
    videos: Sequence[Paths],
    weigh: Callable[[Paths], float],
    answer: Callable[[list[Any], list[Paths]], list[Any]],
    processes: Processes,
    tasks: Mapping[str, Any],
) -> list[Any]:
    """Answers to this process's requests, in their order, each video's by one process; all must call this.

    Parameters
    ----------
    requests
        lmms-eval's, padding among them.
    videos
        What each is about.
    weigh
        How long a request about them takes.
    answer
        Answers requests about videos; called once, with none if there are none.
    processes
        All of them.
    tasks
        lmms-eval's, by name.
    """
    packed = [pack(request, tasks) for request in requests]
    weight = {paths: weigh(paths) for paths in set(videos)}
    offers = [
        Offer(
            paths,
            0.0 if is_padding(request) else weight[paths],
            data is not None,
            ("", *map(str, _name(request))),
        )
        for request, paths, data in zip(requests, videos, packed, strict=True)
    ]

    def answer_once(given: list[Any], of_videos: list[Paths]) -> list[Any]:
        asked, takes = without_padding(given)
        number = len(set(of_videos) - {()})
        logger.info(f"process {processes.rank} answers {len(asked)} question(s) about {number} video(s)")
        answers = answer([given[i] for i in asked], [of_videos[i] for i in asked])
        return [answers[i] for i in takes]

    return exchange(
        requests,
        offers,
        packed,
        answer_once,
        processes.gather,
        processes.rank,
        lambda data: unpack(data, tasks),
    )


def exchange(
    requests: Sequence[Any],
    offers: Sequence[Offer],
    packed: Sequence[bytes | None],
    answer: Callable[[list[Any], list[Paths]], list[Any]],
    gather: Callable[[Any], list[Any]],
    rank: int,
    unpack: Callable[[bytes], Any],
) -> list[Any]:
    """Answers to a process's requests, in their order, whoever gave them.

    Parameters
    ----------
    requests, offers, packed
        What this process was given: itself, what is told of it, and as it is handed over (None if it cannot be).
    answer
        Answers requests about videos; called on every process, with none if there are none.
    gather
        What all processes say at this point, by rank.
    rank
        This process's.
    unpack
        From bytes to the request.
    """
    everyone = gather(list(offers))
    owner = assign_processes(everyone)
    received = gather({i: packed[i] for i in range(len(requests)) if owner[rank][i] != rank})
    own = []
    for home, of_home in enumerate(everyone):
        for i, offer in enumerate(of_home):
            if owner[home][i] == rank:
                own.append(((i, home), requests[i] if home == rank else unpack(received[home][i]), offer.videos))
    own.sort(key=lambda item: item[0])  # as they were before they were dealt out
    answers = answer([request for _, request, _ in own], [videos for _, _, videos in own])
    given = {place: a for (place, _, _), a in zip(own, answers, strict=True)}
    returned = gather({place: a for place, a in given.items() if place[1] != rank})
    for of_rank in returned:
        given.update(of_rank)
    return [given[i, rank] for i in range(len(requests))]


def without_padding(requests: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Which requests are to be answered, and for each of all requests whose answer among those it gets.

    lmms-eval fills up shorter processes with copies of a request, their last one or a task's first, whose answers
    nobody reads; but its response cache keeps them under the name of the true one's.
    """
    padding = [is_padding(request) for request in requests]
    places: dict[tuple[Any, ...], int] = {}
    asked: list[int] = []
    takes = [0] * len(requests)
    for number in sorted(range(len(requests)), key=lambda n: (padding[n], n)):
        request = requests[number]
        name = _name(request)
        if not padding[number] or name not in places:
            places[name] = len(asked)
            asked.append(number)
        takes[number] = places[name]
    return asked, takes


def _name(request: Any) -> tuple[Any, ...]:
    """What a request has in common with its copies alone: document, task, split, number among the document's, text."""
    parts = take_apart(request)
    return (*parts.document, request.idx, parts.text)


def is_padding(request: Any) -> bool:
    """Whether nobody reads a request's answer: lmms-eval fills up shorter processes with copies."""
    return bool(request.metadata.get("__padding_only__"))


def pack(request: Any, tasks: Mapping[str, Any]) -> bytes | None:
    """A request for another process: tasks in it, and their methods, go by name. None if it holds what cannot go."""
    names = {id(task): name for name, task in tasks.items()}
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.persistent_id = lambda thing: names.get(id(thing))  # type: ignore[method-assign]
    try:
        pickler.dump(request)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return buffer.getvalue()


def unpack(packed: bytes, tasks: Mapping[str, Any]) -> Any:
    """The request, of this process's own tasks."""
    unpickler = pickle.Unpickler(io.BytesIO(packed))
    unpickler.persistent_load = tasks.__getitem__  # type: ignore[method-assign]
    return unpickler.load()
