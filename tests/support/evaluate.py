"""lmms-eval's evaluator in this process, and single requests without a task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from lmms_eval import models
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

GREEDY = {"max_new_tokens": 6, "do_sample": False, "temperature": 0}


@cache
def task_manager() -> TaskManager:
    """Indexing all tasks takes seconds; once is enough."""
    return TaskManager()


def model_args(**arguments: Any) -> str:
    """``--model_args`` as the command line has it."""
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def build(model: str, simple: bool = False, **arguments: Any) -> Any:
    """A model the way lmms-eval builds it from the command line."""
    batch_size = arguments.pop("batch_size", 1)
    made = models.get_model(model, simple)
    return made.create_from_arg_string(model_args(**arguments), {"batch_size": batch_size, "max_batch_size": None})


def evaluate(
    model: str,
    tasks: list[str],
    simple: bool = False,
    batch_size: int = 1,
    use_cache: str | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """`simple_evaluate` with the stock task index; returns its results with samples."""
    manager = task_manager()
    manager.model_name = model
    return simple_evaluate(
        model=model,
        model_args=model_args(**arguments),
        tasks=tasks,
        batch_size=batch_size,
        use_cache=use_cache,
        task_manager=manager,
        force_simple=simple,
        bootstrap_iters=0,
    )


@dataclass
class Question:
    """One request: what is looked at (paths of videos, PIL images, nothing) and what is asked."""

    text: str
    media: tuple[Any, ...] = ()

    def messages(self) -> list[dict[str, Any]]:
        """As a chat task's `doc_to_messages` gives them."""
        kinds = [{"type": "video" if isinstance(m, str) else "image", "url": m} for m in self.media]
        return [{"role": "user", "content": [*kinds, {"type": "text", "text": self.text}]}]


def ask(model: Any, questions: list[Question], **generation: Any) -> list[str]:
    """Answers of a model to questions of no task, in their order."""
    model.task_dict["asked"] = {"test": questions}
    requests = []
    for number, question in enumerate(questions):
        kwargs = {**GREEDY, **generation}
        arguments: tuple[Any, ...]
        if model.is_simple:
            arguments = (question.text, kwargs, lambda q: list(q.media), number, "asked", "test")
        else:
            arguments = (question.text, lambda q: q.messages(), kwargs, number, "asked", "test")
        metadata = {"task": "asked", "doc_id": number, "repeats": 1}
        requests.append(Instance("generate_until", arguments, 0, metadata))
    return [getattr(answer, "text", answer) for answer in model.generate_until(requests)]
