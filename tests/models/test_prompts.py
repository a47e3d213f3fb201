"""``X_flexselect`` is asked what the stock task asks ``X``; every other model what it was asked before."""

from __future__ import annotations

import pytest
from lmms_eval.api.task import ConfigurableTask, TaskConfig
from lmms_eval.tasks import get_task_dict

from lmms_flexselect.models.upstream import command_line, upstream_name, use_upstream_prompts
from tests.support.evaluate import task_manager
from tests.support.stock_tasks import STOCK_TASKS


def prompts(task: str, model: str, kind: str) -> list[str]:
    manager = task_manager()
    manager.model_name = model
    built = get_task_dict([task], manager, kind)[task]
    return [built.doc_to_text(doc) for doc in built.eval_docs]


@pytest.fixture(autouse=True)
def _patched(stock_videos):
    use_upstream_prompts()


@pytest.mark.parametrize("kind", ["simple", "chat"])
@pytest.mark.parametrize("base", ["llava_vid", "qwen3_vl", "qwen2_5_vl", "internvl_hf"])
@pytest.mark.parametrize("task", sorted(STOCK_TASKS))
def test_our_name_gets_the_prompt_of_the_name_it_is_made_from(task, base, kind):
    assert prompts(task, f"{base}_flexselect", kind) == prompts(task, base, kind)


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        ("llava_vid_flexselect", "The best answer is:"),
        ("qwen3_vl_flexselect", "Answer with the option letter only."),
        ("qwen2_5_vl_flexselect", "Answer with the option's letter from the given choices directly."),
        ("some_other_model", "Answer with the option's letter from the given choices directly."),
    ],
)
def test_videomme_has_blocks_of_its_own(model, ends):
    for prompt in prompts("videomme", model, "simple"):
        assert prompt.endswith(ends)


def build_task(model, **config):
    """The lookup alone, on a task without data."""
    task = ConfigurableTask.__new__(ConfigurableTask)
    task._config = TaskConfig(task="t", **config)
    task.model_name = model
    task._prepare_model_specific_config()
    return task


def test_a_block_for_our_own_name_wins():
    blocks = {"llava_vid": {"post_prompt": "theirs"}, "llava_vid_flexselect": {"post_prompt": "ours"}}
    task = build_task("llava_vid_flexselect", lmms_eval_specific_kwargs=blocks)
    assert task.lmms_eval_specific_kwargs == {"post_prompt": "ours"}
    assert task.model_name == "llava_vid_flexselect"


def test_the_task_keeps_our_name_whatever_the_lookup_does():
    """Results and caches are kept by it."""
    task = build_task("llava_vid_flexselect", lmms_eval_specific_kwargs={"llava_vid": {"post_prompt": "theirs"}})
    assert task.lmms_eval_specific_kwargs == {"post_prompt": "theirs"}
    assert task.model_name == "llava_vid_flexselect"
    task.config.model_specific_generation_kwargs = 3
    with pytest.raises(TypeError):
        task._prepare_model_specific_config()
    assert task.model_name == "llava_vid_flexselect"


def test_generation_settings_follow_too():
    task = build_task(
        "llava_vid_flexselect",
        generation_kwargs={"max_new_tokens": 16},
        model_specific_generation_kwargs={"llava_vid": {"max_new_tokens": 1}, "default": {}},
    )
    assert task.config.generation_kwargs["max_new_tokens"] == 1


def test_installing_twice_wraps_once():
    once = ConfigurableTask._prepare_model_specific_config
    use_upstream_prompts()
    assert ConfigurableTask._prepare_model_specific_config is once


def test_the_command_line_is_that_of_our_tasks():
    assert command_line() is None
    build_task("some_other_model").args = "theirs"
    task = build_task("llava_vid_flexselect")
    assert command_line() is None
    task.args = "ours"
    assert command_line() == "ours"
    use_upstream_prompts()  # a new model is being built
    assert command_line() is None


def test_names():
    assert upstream_name("llava_vid_flexselect") == "llava_vid"
    assert upstream_name("llava_vid") is None
    assert upstream_name(None) is None
