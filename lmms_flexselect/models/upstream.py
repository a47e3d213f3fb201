"""Every place where lmms-eval leaves no seam, and what is done about it.

Tasks pick their prompt block by the exact ``--model`` name (`use_upstream_prompts`); the wrappers look up what they
load with in their own module (`replaced`); their loops write into the requests (`copies`), which carry what is looked
at as a function (`with_visuals`); the response cache knows models by their arguments' text and answers as texts alone,
keeps nothing of a run that failed, and asks a model for nothing where it has all answers (`mend_response_cache`).
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakSet

import torch
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.caching.response_cache import ResponseCache

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.spec import families
from lmms_flexselect.loading import load_whole
from lmms_flexselect.models.records import Answer, answer_of
from lmms_flexselect.models.requests import take_apart

# Tasks built for the model constructed last.
_our_tasks: WeakSet[ConfigurableTask] = WeakSet()


def upstream_name(model: Any) -> str | None:
    """The upstream model whose prompts a model of ours gets, by its ``--model`` name or instance; None if not ours."""
    if isinstance(model, str):
        names = {each.name: each.upstream_name for spec in families().values() for each in spec.models}
        return names.get(model)
    return getattr(model, "upstream_name", None)


def use_upstream_prompts() -> None:
    """Give ``X_flexselect`` the prompt, target and generation settings that a task has for ``X``.

    A task looks itself up in `lmms_eval_specific_kwargs` by the ``--model`` string and falls back to ``default`` in
    silence, so ``X_flexselect`` would be asked another question than ``X``. The lookup happens in one
    method while the task is built, after the model; that method is wrapped, once, and does what it did for every
    model name that is not ours. A block written for our own name wins.
    """
    _our_tasks.clear()
    original = ConfigurableTask._prepare_model_specific_config
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def prepare(task: ConfigurableTask) -> None:
        asked = task.model_name
        base = upstream_name(asked)
        blocks = task.config.lmms_eval_specific_kwargs or {}
        if base is not None:
            _our_tasks.add(task)
        if base is None or (isinstance(asked, str) and asked in blocks):
            return original(task)
        task.model_name = base
        try:
            return original(task)
        finally:
            task.model_name = asked

    ConfigurableTask._prepare_model_specific_config = prepare


def mend_response_cache() -> None:
    """Wrap, once, the method by which the response cache asks a model; for every model not ours it does what it did.

    - Its keys have the model arguments as text, so files and folders by their names alone: it gets a model's
      `cache_identity` instead.
    - What it is given for a request may be a pair or a list of rounds (`Answer`): it gets the bare value of those, and
      none of what must not be kept; and what it has from an earlier run becomes an `Answer` again.
    - It writes answers down when all have come. If ours stop before, by an error or a signal, those that are there are
      written by the same method, and go into the file that the next run looks into (`RequestRunner.keep`).
    - A process whose requests all come out of the cache is not called at all, while others wait for it: it is called
      afterwards (`RequestRunner.after_response_cache`).
    """
    original = ResponseCache.execute
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def execute(cache: ResponseCache, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
        if upstream_name(lm) is None:
            return original(cache, lm, reqtype, requests)
        if identity := getattr(lm, "cache_identity", None):
            _key_by_content(cache, identity)

        def through(answer: Callable[[list[Any]], list[Answer]], requests: list[Any]) -> list[Answer]:
            computed: dict[int, deque[Answer]] = {}

            def compute(uncached: list[Any]) -> list[Any]:
                answers = answer(uncached)
                computed.update(_by_request(zip(uncached, answers, strict=True)))
                return [_to_keep(given) for given in answers]

            kept = original(cache, SimpleNamespace(**{reqtype: compute}), reqtype, requests)
            return [
                computed[id(request)].popleft() if id(request) in computed else answer_of(reqtype, given)
                for request, given in zip(requests, kept, strict=True)
            ]

        def keep(answered: list[tuple[Any, Answer]]) -> None:
            given = _by_request(answered)
            through(lambda uncached: [given[id(r)].popleft() for r in uncached], [request for request, _ in answered])
            cache._checkpoint_to_run_dir()
            cache.close()
            cache._merge_run_to_root()

        lm.keep = keep
        try:
            answers = through(getattr(lm, reqtype), requests)
            lm.after_response_cache(reqtype, requests)
        finally:
            del lm.keep
        return answers

    ResponseCache.execute = execute


def _key_by_content(cache: ResponseCache, identity: str) -> None:
    """Let the keys of a cache hold what a model of ours is, in place of its arguments' text."""
    if cache.model_fingerprint != identity:
        # `execute` reads this one; to set another one in a later lmms-eval would change nothing, in silence.
        if not isinstance(cache._model_fingerprint_hash, str):
            raise TypeError("lmms-eval's response cache makes its keys in another way than this package knows")
        cache.model_fingerprint = identity
        cache._model_fingerprint_hash = hashlib.sha256(identity.encode()).hexdigest()[:16]


def _by_request(answered: Iterable[tuple[Any, Answer]]) -> dict[int, deque[Answer]]:
    """Answers by the `id` of their request; one that is to be answered several times has as many."""
    answers: dict[int, deque[Answer]] = {}
    for request, answer in answered:
        answers.setdefault(id(request), deque()).append(answer)
    return answers


def _to_keep(answer: Answer) -> Any:
    """As the response cache takes it: None is not kept."""
    if answer.error is not None:
        return None
    return answer if isinstance(answer.text, str) else answer.text


def our_tasks() -> dict[str, ConfigurableTask]:
    """The tasks built for the model constructed last, by their names; none outside lmms-eval's evaluator."""
    return {str(task.config.task): task for task in _our_tasks}


def command_line() -> Any:
    """lmms-eval's parsed command line, or None where it was not run from there.

    It hands it to the tasks alone, and writes all of it into the results file (``config.resolved_cli_args``).
    """
    return next((task.args for task in _our_tasks if getattr(task, "args", None) is not None), None)


class EscapeUpstream(BaseException):
    """Carries an error, as its cause, past an upstream loop that would make an answer of any `Exception`."""


@contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Let `module` see other objects under `names` for the duration; undone whatever happens.

    Raises
    ------
    FlexSelectError
        If the module has no such name, so that nothing would be replaced.
    """
    if missing := [name for name in names if not hasattr(module, name)]:
        raise FlexSelectError(f"{module.__name__} has no {missing[0]}, which this package replaces: another release?")
    saved = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(module, name, value)


def copies(requests: Sequence[Any]) -> list[Any]:
    """Copies of requests, with generation settings of their own.

    Upstream's loops fill those in, or take parts away, and lmms-eval's response cache files an answer by the request's:
    it would not find it again.
    """
    copied = [copy.copy(request) for request in requests]
    for request in copied:
        parts = take_apart(request)
        request.arguments = replace(parts, settings=copy.deepcopy(parts.settings)).arguments
    return copied


def with_visuals(requests: Sequence[Any], change: Callable[[list[Any], str], list[Any]]) -> list[Any]:
    """Copies of a simple model's requests with ``change(visuals, question)`` for their visuals, in all rounds."""

    def changed(doc_to_visual: Callable[[Any], Any], question: str) -> Callable[[Any], list[Any]]:
        return lambda document: change(list(doc_to_visual(document) or []), question)

    def changed_rounds(doc_to_text: Callable[..., Any]) -> Callable[..., Any]:
        def next_round(*arguments: Any, **named: Any) -> Any:
            visuals, text, *rest = doc_to_text(*arguments, **named)
            return (None if visuals is None else change(list(visuals), text), text, *rest)

        return next_round

    copied = [copy.copy(request) for request in requests]
    for request in copied:
        parts = take_apart(request)
        assert parts.visuals is not None
        request.arguments = replace(
            parts,
            visuals=changed(parts.visuals, parts.text),
            next_round=parts.next_round and changed_rounds(parts.next_round),
        ).arguments
    return copied


class StrictLoader:
    """A model class as upstream's constructors use it, which takes our dtype and refuses a checkpoint with gaps.

    Parameters
    ----------
    model_class
        The class that upstream would use.
    dtype
        Of the weights: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    """

    def __init__(self, model_class: Any, dtype: str) -> None:
        self._model_class = model_class
        self._dtype = getattr(torch, dtype)

    def from_pretrained(self, pretrained: str, torch_dtype: Any = None, device_map: Any = None, **kwargs: Any) -> Any:
        """See `load_whole`; `torch_dtype`, upstream's, is not looked at, and an empty `device_map` is none."""
        return load_whole(self._model_class, pretrained, self._dtype, device_map=device_map or None, **kwargs)


class OneProcess:
    """The part of `Accelerator` that upstream's constructors and loops read when there is one process."""

    num_processes = 1
    local_process_index = 0
    process_index = 0
    is_main_process = True

    def __init__(self, **kwargs: Any) -> None:
        """Takes what `Accelerator` takes."""

    @staticmethod
    def unwrap_model(model: Any) -> Any:
        """See `Accelerator.unwrap_model`."""
        return model
