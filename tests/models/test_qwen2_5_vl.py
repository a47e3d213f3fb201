"""The lmms-eval classes of Qwen2.5-VL, run by lmms-eval's own evaluator over the stock data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_flexselect.dump import read_selection
from tests.support.evaluate import Question, ask, build, evaluate

# 112 x 84 pixels make 4 x 3 tokens a pair of frames; 16 frames make 8 units of 12 tokens, in two sets.
SMALL: dict[str, Any] = {"max_num_frames": 16, "min_pixels": 3136, "max_pixels": 112 * 84}
SELECT: dict[str, Any] = {**SMALL, "token_budget": 24, "max_frames_per_set": 4, "reference_layer": 3}
PROMPT = "What is shown?\nA. A square.\nB. A circle."


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


@pytest.mark.parametrize(
    ("simple", "sampling"),  # upstream's simple class has no use for fps
    [(False, {}), (False, {"fps": 1}), (True, {})],
    ids=["chat", "chat-1fps", "simple"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_no_selector_and_library_rope_equal_upstream_bit_for_bit(
    generated, random_checkpoint, videos, simple, sampling, batch_size
):
    arguments = {"pretrained": random_checkpoint, **SMALL, **sampling, "batch_size": batch_size}
    questions = [Question(f"{PROMPT} ({i})", (video,)) for i, video in enumerate(videos)]
    upstream = build("qwen2_5_vl", simple, device="cpu", device_map="cpu", **arguments)
    expected = ask(upstream, questions)
    ours = build("qwen2_5_vl_flexselect", simple, selector="none", rope="library", **arguments)
    assert ask(ours, questions) == expected

    half = len(generated) // 2
    assert half == -(-len(questions) // batch_size)
    for (want, want_output), (got, got_output) in zip(generated[:half], generated[half:], strict=True):
        assert torch.equal(got_output, want_output)
        for name, value in want.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(got[name], value), name


@pytest.mark.parametrize("selector", ["flexselect", "uniform", "random"])
def test_a_budget_no_smaller_than_the_video_changes_nothing(generated, random_checkpoint, videos, selector):
    arguments = {"pretrained": random_checkpoint, **SELECT, "dtype": "float32"}
    questions = [Question(PROMPT, (video,)) for video in videos]
    baseline = ask(build("qwen2_5_vl_flexselect", **{**arguments, "selector": "none"}), questions)
    whole = ask(build("qwen2_5_vl_flexselect", **{**arguments, "selector": selector, "token_budget": 96}), questions)
    assert whole == baseline
    half = len(generated) // 2
    for (want, _), (got, _) in zip(generated[:half], generated[half:], strict=True):
        assert torch.equal(got["inputs_embeds"], want["inputs_embeds"])
        assert torch.equal(got["position_ids"], want["position_ids"])


def test_batches_keep_and_answer_the_same(tmp_path, random_checkpoint, videos):
    """Also mixed ones: two videos, a short one, an image, and text alone."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 84, 3), dtype=np.uint8))
    questions = [
        Question("What comes first, and what after it?", (videos[0], videos[1])),
        Question(PROMPT, (videos[2],)),
        Question("Who is this?", (image,)),
        Question("And this?", (videos[3], image)),
        Question("What is two plus two?"),
    ]
    answers, kept = {}, {}
    for size in (1, 2, 5):
        folder = tmp_path / str(size)
        model = build(
            "qwen2_5_vl_flexselect",
            pretrained=random_checkpoint,
            batch_size=size,
            dtype="float32",
            dump_selection=folder,
            **SELECT,
        )
        answers[size] = ask(model, questions)
        kept[size] = {path.name: read_selection(path)[0] for path in sorted(folder.iterdir())}
        counts = {r.doc_id: (r.visual_tokens, r.visual_tokens_kept) for r in model._selecting.records}
        assert counts == {0: (192, 24), 1: (96, 24), 2: (0, 0), 3: (96, 24), 4: (0, 0)}
    assert answers[1] == answers[2] == answers[5]
    for size in (2, 5):
        for name, arrays in kept[size].items():
            assert np.array_equal(arrays["kept"], kept[1][name]["kept"]), name
    two = kept[5]["asked__test__0.npz"]
    assert [int(two["kept"][two["video"] == v].sum()) for v in (0, 1)] == [12, 12]


def test_images_and_text_pass_through_untouched(generated, random_checkpoint):
    image = Image.fromarray(np.full((84, 84, 3), 90, np.uint8))
    questions = [Question("Who is this?", (image,)), Question("What is two plus two?")]
    arguments = {"pretrained": random_checkpoint, **SMALL}
    expected = ask(build("qwen2_5_vl", device="cpu", device_map="cpu", **arguments), questions)
    assert ask(build("qwen2_5_vl_flexselect", **arguments), questions) == expected
    # Upstream sorts its questions, ours come as they are.
    prompts = [call["input_ids"].tolist() for call, _ in generated]
    assert sorted(prompts[:2]) == sorted(prompts[2:])
    assert all("inputs_embeds" not in call for call, _ in generated)


def test_the_four_stock_tasks_run_unchanged(random_checkpoint, stock_videos):
    tasks = list(stock_videos)
    results = evaluate("qwen2_5_vl_flexselect", tasks, pretrained=random_checkpoint, **SELECT)
    assert set(results["results"]) == set(tasks)
    for task in tasks:
        assert [len(results["samples"][task])] == [4]
        for sample in results["samples"][task]:
            assert sample["token_counts"][0]["input_tokens"] > 24
    throughput = results["throughput"]
    assert throughput["avg_samples"] == 16
    assert throughput["avg_visual_tokens"] == 96
    assert throughput["avg_visual_tokens_kept"] == 24
    assert 0 < throughput["avg_selector_seconds"] < throughput["avg_time_to_first_token_seconds"]
    assert throughput["avg_peak_memory_gib"] > 0


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_selection_reaches_the_language_model(generated, random_checkpoint, videos, simple):
    arguments = {"pretrained": random_checkpoint, "dtype": "float32", **SELECT, "fps": 2}
    lengths = {}
    for selector in ("none", "flexselect", "uniform", "random"):
        model = build("qwen2_5_vl_flexselect", simple, **arguments, selector=selector)
        ask(model, [Question(PROMPT, (videos[0],))])
        lengths[selector] = generated[-1][0]["inputs_embeds"].shape[1]
    # 6 seconds at 2 fps: 12 frames, 6 units, 72 tokens.
    assert lengths["none"] - lengths["flexselect"] == 72 - 24
    assert lengths["flexselect"] == lengths["uniform"] == lengths["random"]


def test_two_frames_a_second_with_at_most_n_frames_together(generated, random_checkpoint, videos):
    for frames, expected in ((16, 6), (8, 4)):
        model = build(
            "qwen2_5_vl_flexselect", pretrained=random_checkpoint, **{**SMALL, "max_num_frames": frames}, fps=2
        )
        ask(model, [Question(PROMPT, (videos[0],))])
        (record,) = model._selecting.records
        assert record.visual_tokens == expected * 12
