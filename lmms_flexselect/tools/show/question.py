"""A question about a video, answered by the model classes that lmms-eval runs: what their selectors keep of it."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import OptionError
from lmms_flexselect.options import layer_numbers
from lmms_flexselect.tools.build import build_model, parse_model_args
from lmms_flexselect.tools.show.views import VideoQuestion, join, read_views
from lmms_flexselect.video.file import file_complaint

_TASK, _SPLIT = "show", "test"


def views_of_question(
    model: str, model_args: str, compare: list[str], video: str, question: str, layers: str | None, max_new_tokens: int
) -> list[VideoQuestion]:
    """What the model's selector, and those of `compare`, keep of a video for a question; and their answers.

    Parameters
    ----------
    model, model_args
        As after lmms-eval's ``--model`` and ``--model_args``.
    compare
        Model arguments that replace those of `model_args`, for one more view each.
    video, question
        A file, and the text of the question.
    layers
        ``all``, or numbers and ranges (``0,4-7``): one view each, ranked at that layer; None for the reference layer.
    max_new_tokens
        Of an answer.

    Raises
    ------
    OptionError, VideoError
        If there is no such model, argument, video or layer.
    """
    if complaint := file_complaint(video):
        raise OptionError(f"{video}: {complaint}")
    if not question.strip():
        raise OptionError("the question is empty, so there is nothing to rank by")
    found: list[VideoQuestion] = []
    for number, replaced in enumerate([{}, *map(parse_model_args, compare)]):
        arguments = {**parse_model_args(model_args), **replaced}
        for one in _views(model, arguments, video, question, None if number else layers, max_new_tokens):
            _name_apart(found, one, replaced)
            if found:
                join(found, one)
            else:
                found = one
    for each in found:
        each.title = Path(video).name
    return found


def _views(
    model: str, arguments: dict[str, Any], video: str, question: str, layers: str | None, max_new_tokens: int
) -> list[list[VideoQuestion]]:
    with tempfile.TemporaryDirectory() as folder:
        made = build_model(model, {**arguments, "dump_selection": folder, "strict": True, "batch_size": 1})
        selector = made.options.selector
        if layers is not None and selector != "flexselect":
            raise OptionError(f"--layers {layers}: goes with selector=flexselect, not {selector}")
        numbers = (
            [made.options.reference_layer]
            if layers is None
            else layer_numbers(layers, made.num_layers, f"--layers {layers}")
        )
        views = []
        for layer in numbers:
            name = selector
            if selector == "flexselect":
                made.rank_at(layer)
                name += f", layer {layer}"
            answer = _answer(made, video, question, max_new_tokens)
            if not (dump := Path(folder) / f"{_TASK}__{_SPLIT}__0.npz").is_file():
                line = ",".join(f"{name}={value}" for name, value in arguments.items())
                raise OptionError(f"--model_args {line}: upstream's own model answers then, and nothing is selected")
            seen = read_views(dump, name)
            for each in seen:
                each.views[0].answer = answer
            views.append(seen)
    del made
    gc.collect()  # the next model may need the room
    return views


def _answer(model: Any, video: str, question: str, max_new_tokens: int) -> str:
    from lmms_eval.api.instance import Instance

    model.task_dict[_TASK] = {_SPLIT: [None]}
    content = [{"type": "video", "url": video}, {"type": "text", "text": question}]
    generation = {"max_new_tokens": max_new_tokens, "do_sample": False, "temperature": 0}
    document = (0, _TASK, _SPLIT)
    if model.is_simple:
        arguments: tuple[Any, ...] = (question, generation, lambda _: [video], *document)
    else:
        arguments = (question, lambda _: [{"role": "user", "content": content}], generation, *document)
    request = Instance("generate_until", arguments, 0, {"task": _TASK, "doc_id": 0, "repeats": 1})
    (answer,) = model.generate_until([request])
    return str(getattr(answer, "text", answer))


def _name_apart(found: list[VideoQuestion], one: list[VideoQuestion], replaced: dict[str, Any]) -> None:
    """Say of a compared view which arguments are other, unless its name says that already."""
    others = [f"{name}={value}" for name, value in replaced.items() if name not in ("selector", "selector_path")]
    names = {view.name for each in found[:1] for view in each.views}
    for each in one:
        for view in each.views:
            if others or view.name in names:
                view.name = ", ".join([view.name, *(others or ["again"])])
