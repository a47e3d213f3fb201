"""The lmms-eval classes of Qwen3-VL, run by lmms-eval's own evaluator over the stock data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.qwen3_vl.needle import build_model, build_processor
from tests.support.evaluate import Question, ask, build, evaluate
from tests.support.qwen3_vl import qwen3_vl

# 128 x 96 pixels make 4 x 3 tokens a pair of frames; 16 frames make 8 units of 12 tokens, in two sets.
SMALL: dict[str, Any] = {"max_num_frames": 16, "min_pixels": 4096, "max_pixels": 128 * 96}
SELECT: dict[str, Any] = {**SMALL, "token_budget": 24, "max_frames_per_set": 4, "reference_layer": 3}
PROMPT = "What is shown?\nA. A square.\nB. A circle."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Qwen3-VL with random weights and a working processor."""
    folder = tmp_path_factory.mktemp("checkpoints") / "random_qwen3_vl"
    torch.manual_seed(7)
    processor = build_processor()
    build_model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moe_checkpoint(tmp_path_factory):
    """One of mixed experts; upstream would not know it by its name."""
    folder = tmp_path_factory.mktemp("checkpoints") / "random_moe"
    qwen3_vl("moe").save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"fps": 1}, {"fps": 2, "max_num_frames": 6}, {"total_pixels": 8 * 128 * 96}],
    ids=["spread", "1 fps", "at most 6", "total pixels"],
)
@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_no_selector_equals_upstream_bit_for_bit(generated, checkpoint, videos, simple, sampling, batch_size):
    """Passed through with the library's positions; and answered the same with our own, which are equal."""
    arguments = {"pretrained": checkpoint, **SMALL, **sampling, "batch_size": batch_size}
    questions = [Question(f"{PROMPT} ({i})", (video,)) for i, video in enumerate(videos)]
    upstream = build("qwen3_vl", simple, device="cpu", device_map="cpu", **arguments)
    expected = ask(upstream, questions)
    ours = build("qwen3_vl_flexselect", simple, selector="none", rope="library", **arguments)
    assert ask(ours, questions) == expected
    half = len(generated) // 2
    assert half == -(-len(questions) // batch_size)
    # Upstream's simple class sorts its questions.
    for (want, want_output), (got, got_output) in zip(generated[:half], generated[half:], strict=True):
        if simple and batch_size == 2:
            continue
        if simple:
            (want, want_output) = next(each for each in generated[:half] if same_prompt(each[0], got))
        assert torch.equal(got_output, want_output)
        for name, value in want.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(got[name], value), name
    own = build("qwen3_vl_flexselect", simple, selector="none", **arguments)
    assert ask(own, questions) == expected


def same_prompt(one, other):
    return torch.equal(one["input_ids"], other["input_ids"])


def test_experts_are_known_by_the_checkpoint(generated, moe_checkpoint, videos):
    model = build("qwen3_vl_flexselect", pretrained=moe_checkpoint, **{**SELECT, "dtype": "float32"})
    assert type(model.family.model).__name__ == "Qwen3VLMoeForConditionalGeneration"
    ask(model, [Question(PROMPT, (videos[0],))])
    assert [(r.visual_tokens, r.visual_tokens_kept) for r in model._selecting.records] == [(96, 24)]


def test_another_familys_checkpoint_is_refused(random_checkpoint):
    with pytest.raises(OptionError, match=r"is a qwen2_5_vl checkpoint; this class reads qwen3_vl and qwen3_vl_moe$"):
        build("qwen3_vl_flexselect", pretrained=random_checkpoint)


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_batches_answer_the_same(checkpoint, videos, simple):
    """Also mixed ones: two videos, a short one, an image, and text alone."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    questions = [
        Question("What comes first, and what after it?", (videos[0], videos[1])),
        Question(PROMPT, (videos[2],)),
        Question("Who is this?", (image,)),
        Question("And this?", (videos[3], image)),
        Question("What is two plus two?"),
    ]
    answers = {}
    for size in (1, 5):
        model = build("qwen3_vl_flexselect", simple, pretrained=checkpoint, batch_size=size, dtype="float32", **SELECT)
        answers[size] = ask(model, questions)
        counts = {r.doc_id: (r.visual_tokens, r.visual_tokens_kept) for r in model._selecting.records}
        assert counts == {0: (192, 24), 1: (96, 24), 2: (0, 0), 3: (96, 24), 4: (0, 0)}
    assert answers[1] == answers[5]


def test_a_videos_further_questions_need_no_pixels(generated, checkpoint, videos):
    """Spelled out without them, the prompt is the processor's own."""
    questions = [Question(f"{PROMPT} ({i})", (videos[0],)) for i in range(3)]
    arguments = {"pretrained": checkpoint, "dtype": "float32", **SELECT, "fps": 2}
    kept = build("qwen3_vl_flexselect", **arguments)
    runs: list[int] = []
    kept.family.model.model.visual.register_forward_pre_hook(lambda *_: runs.append(1))
    answers = ask(kept, questions)
    assert len(runs) == 1
    assert ask(build("qwen3_vl_flexselect", **arguments, store_gpu_gib=0, store_cpu_gib=0), questions) == answers
    half = len(generated) // 2
    for (got, _), (want, _) in zip(generated[:half], generated[half:], strict=True):
        assert torch.equal(got["input_ids"], want["input_ids"])
        assert torch.equal(got["inputs_embeds"], want["inputs_embeds"])
        assert torch.equal(got["position_ids"], want["position_ids"])


def test_the_four_stock_tasks_run_unchanged(checkpoint, stock_videos):
    tasks = list(stock_videos)
    results = evaluate("qwen3_vl_flexselect", tasks, pretrained=checkpoint, **SELECT)
    assert set(results["results"]) == set(tasks)
    for task in tasks:
        assert [len(results["samples"][task])] == [4]
    throughput = results["throughput"]
    assert throughput["avg_samples"] == 16
    assert throughput["avg_visual_tokens"] == 96
    assert throughput["avg_visual_tokens_kept"] == 24


def test_thinking_is_stripped_as_upstream_does(checkpoint, videos, monkeypatch):
    said = "Let me see.</think>\n\nB"
    for thinking in (True, False):
        model = build("qwen3_vl_flexselect", pretrained=checkpoint, enable_thinking=thinking, **SELECT)
        monkeypatch.setattr(type(model.processor), "batch_decode", lambda *_, **__: [said], raising=False)
        assert ask(model, [Question(PROMPT, (videos[0],))]) == ["B" if thinking else said]
