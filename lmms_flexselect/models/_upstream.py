"""Every place where lmms-eval leaves no seam, and what is done about it.

Tasks pick their prompt block by the exact ``--model`` name (`use_upstream_prompts`); the wrappers look up what they
load with in their own module (`replaced`); requests carry what is looked at as a function (`with_visuals`); the
response cache knows a model by its arguments' text, and asks for nothing where it has all answers
(`ask_behind_cache`).
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import WeakSet

from lmms_eval.api.task import ConfigurableTask
from lmms_eval.caching.response_cache import ResponseCache

SUFFIX = "_flexselect"

# Tasks built for the model constructed last.
_our_tasks: WeakSet[ConfigurableTask] = WeakSet()


def upstream_name(model: Any) -> str | None:
    """The upstream model whose prompts a model of ours gets, by its ``--model`` name or instance; None if not ours."""
    if isinstance(model, str):
        return model.removesuffix(SUFFIX) if model.endswith(SUFFIX) else None
    return getattr(model, "upstream_name", None)


def use_upstream_prompts() -> None:
    """Give ``X_flexselect`` the prompt, target and generation settings that a task has for ``X``.

    A task looks itself up in `lmms_eval_specific_kwargs` by the ``--model`` string and falls back to ``default`` in
    silence, so ``llava_vid_flexselect`` would be asked another question than ``llava_vid``. The lookup happens in one
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


def ask_behind_cache() -> None:
    """Have the response cache know a model of ours by its `cache_identity`, and tell it when it is done.

    Upstream's own keys have the model arguments as text, so files and folders by their names alone. At the end the
    model's ``behind_cache(kind, requests)`` is called: a process whose requests all come out of the cache is not called
    at all, while others wait for it. The method that asks is wrapped, once, and does what it did for every model that
    is not ours.
    """
    original = ResponseCache.execute
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def execute(cache: ResponseCache, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
        if upstream_name(lm) is not None and (identity := getattr(lm, "cache_identity", None)):
            _key_by_content(cache, identity)
        answers = original(cache, lm, reqtype, requests)
        if upstream_name(lm) is not None:
            lm.behind_cache(reqtype, requests)
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
    """Let `module` see other objects under `names` for the duration; undone whatever happens."""
    saved = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(module, name, value)


def with_visuals(requests: list[Any], change: Callable[[list[Any], str], list[Any]]) -> list[Any]:
    """Copies of a simple model's requests with ``change(visuals, question)`` instead of their visuals.

    Their generation settings are copied too: upstream's loops fill them in, and lmms-eval's response cache stores
    answers by the request's own, so that it would not find them again.
    """

    def changed(doc_to_visual: Callable[[Any], Any], question: str) -> Callable[[Any], list[Any]]:
        return lambda document: change(list(doc_to_visual(document) or []), question)

    copies = [copy.copy(request) for request in requests]
    for request in copies:
        # `generate_until` and `loglikelihood` agree in this: (question, …, doc_to_visual, number, task, split).
        question, second, doc_to_visual, *document = request.args
        second = copy.copy(second) if isinstance(second, dict) else second
        request.arguments = (question, second, changed(doc_to_visual, question), *document)
    return copies
