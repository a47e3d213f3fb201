"""What this package needs of lmms-eval's insides, and a check that the installed release has it.

Our classes override, replace and call things that lmms-eval does not promise to keep. Each is named here once. Where a
release has changed one, a run would go on and be wrong: so the constructors compare first, and say in one line what is
different.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from types import FunctionType
from typing import Any

from lmms_flexselect.errors import FlexSelectError

PARAMETERS: dict[str, tuple[str, ...]] = {
    # Wrapped (`lmms_flexselect.models.upstream`).
    "lmms_eval.api.task:ConfigurableTask._prepare_model_specific_config": ("self",),
    "lmms_eval.caching.response_cache:ResponseCache.execute": ("self", "lm", "reqtype", "requests"),
    # Called, or made, by position.
    "lmms_eval.caching.response_cache:ResponseCache._checkpoint_to_run_dir": ("self",),
    "lmms_eval.caching.response_cache:ResponseCache.close": ("self",),
    "lmms_eval.caching.response_cache:ResponseCache._merge_run_to_root": ("self",),
    "lmms_eval.models.model_utils.gen_metrics:log_metrics": (
        "total_elapsed_time",
        "total_gen_tokens",
        "avg_speed",
        "additional_metrics",
    ),
    "lmms_eval.api.instance:GenerationResult": ("text", "token_counts"),
    "lmms_eval.api.instance:TokenCounts": ("input_tokens", "output_tokens"),
    # Replaced by `OneBatch`.
    "lmms_eval.utils:Collator.get_batched": ("self", "n", "batch_fn"),
    "lmms_eval.utils:Collator.get_original": ("self", "newarr"),
    # Read: what a request has.
    "lmms_eval.api.instance:Instance": ("request_type", "arguments", "idx", "metadata"),
    # Overridden, and called by lmms-eval.
    "lmms_eval.api.model:lmms.generate_until": ("self", "requests"),
    "lmms_eval.api.model:lmms.generate_until_multi_round": ("self", "requests"),
    "lmms_eval.api.model:lmms.generate_visual_cot": ("self", "requests"),
    "lmms_eval.api.model:lmms.loglikelihood": ("self", "requests"),
    "lmms_eval.api.model:lmms.clean": ("self",),
}
"""The parameters that a function, or a class's constructor, begins with; all further ones must have defaults."""

NAMES: dict[str, tuple[str, ...]] = {
    "lmms_eval.api.task:ConfigurableTask._prepare_model_specific_config": (
        "model_name",
        "lmms_eval_specific_kwargs",
        "model_specific_target_kwargs",
        "model_specific_generation_kwargs",
    ),
    "lmms_eval.caching.response_cache:ResponseCache.__init__": ("model_fingerprint", "_model_fingerprint_hash"),
    "lmms_eval.caching.response_cache:ResponseCache.execute": ("_model_fingerprint_hash",),
    "lmms_eval.evaluator:evaluate": ("execute", "clean"),
}
"""Names that the code of a function must hold: what it reads of what we set, or calls of what we override."""

_LOOPS = ("generate_until", "generate_until_multi_round", "generate_visual_cot", "loglikelihood")


def check_lmms_eval() -> None:
    """Raise `FlexSelectError` if a function that we wrap, call or stand in for is another than was known."""
    for path, expected in PARAMETERS.items():
        found = list(inspect.signature(_found(path)).parameters.values())
        names = tuple(parameter.name for parameter in found)
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        more = [p.name for p in found[len(expected) :] if p.default is p.empty and p.kind not in variable]
        if names[: len(expected)] != expected or more:
            _changed(f"{path} takes ({', '.join(names)}), not ({', '.join(expected)})")
    for path, expected in NAMES.items():
        code = inspect.unwrap(_found(path)).__code__
        if missing := [name for name in expected if name not in code.co_names]:
            _changed(f"{path} does not use {missing[0]}")


def check_class(model_class: type) -> None:
    """Compare one of our classes with the upstream class that it subclasses.

    Parameters
    ----------
    model_class
        Our methods come first in its order of resolution; `_overrides` in our classes names what of upstream's they
        define or set anew.

    Raises
    ------
    FlexSelectError
        If upstream defines or sets a name of ours that is not declared, so that one would hide the other; if it has
        none of a declared name, or takes other parameters there; or if its loops do not see what we replace.
    """
    mro = model_class.__mro__[:-1]
    ours = [base for base in mro if hasattr(base, "_overrides")]
    upstream = [base for base in mro if base not in ours]
    declared = frozenset[str]().union(*(vars(base).get("_overrides", ()) for base in ours))
    own, theirs = (set(_names_of(bases)) for bases in (ours, upstream))
    where = f"{upstream[0].__module__}.{upstream[0].__qualname__}"
    if hidden := sorted((own & theirs) - declared):
        _changed(f"{where} has a {hidden[0]} of its own, which is a name of {model_class.__name__}'s too")
    if missing := sorted(declared - theirs):
        _changed(f"{where} has no {missing[0]}, which {model_class.__name__} overrides")
    for name in sorted(declared):
        here, there = (_function(bases, name) for bases in (ours, upstream))
        if here and there:
            expected, found = (tuple(inspect.signature(f).parameters) for f in (here, there))
            if expected != found:
                _changed(f"{where}.{name} takes ({', '.join(found)}), not ({', '.join(expected)})")
    module = import_module(model_class._upstream_module.__name__)  # type: ignore[attr-defined]
    for name in model_class._upstream_replacements:  # type: ignore[attr-defined]
        if not hasattr(module, name):
            _changed(f"{module.__name__} has no {name}, which is replaced there while its loops run")
    for name in _LOOPS:
        loop = _function(upstream, name)
        # Requests must come in the order, and in the batch, that we give them in.
        if loop and "Collator" in loop.__code__.co_names and "utils" not in loop.__code__.co_names:
            _changed(f"{where}.{name} does not find Collator in utils, where it is replaced")


def _changed(difference: str) -> None:
    raise FlexSelectError(
        f"lmms-eval {version('lmms-eval')} is not as this package knows it: {difference}; install a release that "
        "docs/compatibility.md names"
    )


def _found(path: str) -> Callable[..., Any]:
    module, _, names = path.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        if not hasattr(found, name):
            _changed(f"there is no {path}")
        found = getattr(found, name)
    return found


def _function(bases: list[type], name: str) -> FunctionType | None:
    """The plain function of that name that comes first."""
    found = next((vars(base)[name] for base in bases if name in vars(base)), None)
    return inspect.unwrap(found) if inspect.isfunction(found) else None


def _names_of(bases: list[type]) -> Iterator[str]:
    """What classes define, and what their methods set on something."""
    for base in bases:
        for name, value in vars(base).items():
            if not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl":
                yield name
            functions = [value.fget] if isinstance(value, property) else [getattr(value, "__func__", value)]
            for function in functions:
                if inspect.isfunction(function):
                    for step in dis.get_instructions(inspect.unwrap(function)):
                        if step.opname == "STORE_ATTR":
                            yield str(step.argval)
