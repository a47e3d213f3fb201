"""How likely given answers are, with the visual tokens selected: against plain forward passes in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import decord
import pytest
import torch
from lmms_eval.api.instance import Instance, unwrap_generation_output
from transformers import AutoTokenizer

from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.families.llava_video import frames as llava_video_frames
from lmms_flexselect.families.llava_video.family import pixel_values
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from tests.support.evaluate import build

SMALL: dict[str, Any] = {"max_frames_num": 16, "dtype": "float32"}
SELECT: dict[str, Any] = {**SMALL, "token_budget": 12, "max_frames_per_set": 3, "reference_layer": 3}
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
BEHIND = "<|im_end|>\n<|im_start|>assistant\n"
PROMPT = "What is shown?"
TARGETS = ["A", "A red circle.", "B. A green square, and then nothing for a long time.", ""]


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


@pytest.fixture(scope="module")
def tokenizer(llava_checkpoint):
    return AutoTokenizer.from_pretrained(llava_checkpoint)


@pytest.fixture(scope="module")
def exact(llava_checkpoint):
    """The model in float64."""
    config = LlavaVideoConfig.from_checkpoint(str(llava_checkpoint))
    return LlavaVideoForCausalLM.from_pretrained(llava_checkpoint, config=config, dtype=torch.float64)


def likelihoods(model, asked, prompt=PROMPT, callable_targets=False):
    """Loss and whether the target is the likeliest text, for each question."""
    return [tuple(answer) for answer in answers(model, asked, prompt, callable_targets)]


def answers(model, asked, prompt=PROMPT, callable_targets=False):
    """Answers to requests as lmms-eval makes them of `(video, target)` pairs, one document each."""
    documents = [SimpleNamespace(video=video, target=target) for video, target in asked]
    model.task_dict["asked"] = {"test": documents}
    requests = []
    for number, document in enumerate(documents):
        # A `loglikelihood` task hands over how to get the target, a `multiple_choice` task the target itself.
        target = (lambda doc: doc.target) if callable_targets else document.target
        arguments = (prompt, target, lambda doc: [doc.video], number, "asked", "test")
        metadata = {"task": "asked", "doc_id": number, "repeats": 1}
        requests.append(Instance("loglikelihood", arguments, number, metadata))
    return model.loglikelihood(requests)


def llava(checkpoint, **arguments):
    return build("llava_vid_flexselect", **{"pretrained": checkpoint, **SMALL, **arguments})


def mean_nll(model, tokenizer, video, target, kept=None):
    """Mean negative log-likelihood of the target and the end of the turn, and whether each of them is the likeliest."""
    frames = torch.from_numpy(decord.VideoReader(video).get_batch(range(0, 48, 8)).asnumpy())
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        visual = model.model.encode_frames(pixel_values(frames, 56).double()).flatten(0, 1)
        visual = visual if kept is None else visual[torch.from_numpy(kept)]
        continuation = tokenizer(f"{target}<|im_end|>\n").input_ids
        question = table[tokenizer(BEFORE).input_ids], visual, table[tokenizer(f"\n{PROMPT}{BEHIND}").input_ids]
        embeds = torch.cat([*question, table[continuation]])[None]
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -len(continuation) - 1 : -1]
    assert logits.dtype == torch.float64
    logs = logits.log_softmax(-1)
    nll = -sum(float(logs[place, token]) for place, token in enumerate(continuation)) / len(continuation)
    return nll, logits.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("callable_targets", [False, True])
@pytest.mark.parametrize("selector", ["none", "flexselect", "uniform"])
def test_loss_is_the_mean_nll_of_the_target(
    tmp_path, llava_checkpoint, exact, tokenizer, videos, selector, callable_targets
):
    model = llava(llava_checkpoint, **SELECT, selector=selector, dump_selection=tmp_path)
    asked = [(videos[number % 2], target) for number, target in enumerate(TARGETS)]
    answers = likelihoods(model, asked, callable_targets=callable_targets)
    assert len(answers) == len(asked)
    for number, ((video, target), (loss, is_greedy)) in enumerate(zip(asked, answers, strict=True)):
        kept = read_selection(tmp_path / f"asked__test__{number}.npz")[0]["kept"]
        assert kept.sum() == (36 if selector == "none" else 12)
        wanted, wanted_greedy = mean_nll(exact, tokenizer, video, target, kept)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert is_greedy is wanted_greedy is False
        if selector == "flexselect":
            assert loss != pytest.approx(mean_nll(exact, tokenizer, video, target)[0], rel=1e-4)


def test_the_evaluator_hands_on_loss_and_likeliest(llava_checkpoint, videos):
    """A `GenerationResult` around the pair would get through, and with it `multiple_choice` tasks."""
    (answer,) = answers(llava(llava_checkpoint, **SELECT), [(videos[0], "A")])
    handed_on, _ = unwrap_generation_output(answer)
    loss, is_greedy = handed_on
    assert loss > 0
    assert is_greedy is False


def test_a_whole_budget_is_no_selection(llava_checkpoint, videos):
    asked = [(video, target) for video in videos[:2] for target in TARGETS]
    whole = likelihoods(llava(llava_checkpoint, **{**SELECT, "token_budget": 36}), asked)
    assert whole == likelihoods(llava(llava_checkpoint, **SELECT, selector="none"), asked)


def test_what_is_kept_does_not_depend_on_the_target(tmp_path, llava_checkpoint, videos):
    """Else every choice of a question would be judged by another video."""
    targets = [*TARGETS, "star " * 40]
    model = llava(llava_checkpoint, **SELECT, dump_selection=tmp_path)
    likelihoods(model, [(videos[0], target) for target in targets])
    kept, scores = zip(
        *(
            (arrays["kept"].tolist(), arrays["scores"].tolist())
            for arrays, _ in (read_selection(tmp_path / f"asked__test__{n}.npz") for n in range(len(targets)))
        ),
        strict=True,
    )
    assert all(other == kept[0] for other in kept)
    assert all(other == scores[0] for other in scores)
    # But on the question it does.
    likelihoods(model, [(videos[0], "A")], prompt="Which colour has the circle, and which the star?")
    assert read_selection(tmp_path / "asked__test__0.npz")[0]["scores"].tolist() != scores[0]


def test_the_kept_tokens_are_those_of_generating(tmp_path, llava_checkpoint, videos):
    model = llava(llava_checkpoint, **SELECT, dump_selection=tmp_path)
    likelihoods(model, [(videos[0], "A")])
    path = tmp_path / "asked__test__0.npz"
    judged, sample = read_selection(path)
    path.unlink()
    arguments = (PROMPT, {"max_new_tokens": 2}, lambda doc: [doc.video], 0, "asked", "test")
    model.generate_until([Instance("generate_until", arguments, 0, {"task": "asked", "doc_id": 0, "repeats": 1})])
    answered, answered_sample = read_selection(path)
    assert sample == answered_sample
    assert all((judged[name] == answered[name]).all() for name in judged)


@pytest.fixture
def chained(llava_checkpoint, tokenizer):
    """A model that looks at the last token alone: a new line is followed by A, A by the end, the end by a new line."""
    model = llava(llava_checkpoint, **SELECT)
    loaded = model._model
    table = loaded.get_input_embeddings().weight
    line, a, end = (tokenizer(text).input_ids for text in ("\n", "A", "<|im_end|>"))
    with torch.no_grad():
        for layer in loaded.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        loaded.model.norm.weight.fill_(1)
        loaded.lm_head.weight.zero_()
        for (token,), (next_token,) in ((line, a), (a, end), (end, line)):
            loaded.lm_head.weight[next_token] = table[token] / table[token].norm()
    return model


def test_the_likeliest_text_is_known(chained, videos):
    answers = likelihoods(chained, [(videos[0], target) for target in ("A", "B", "AA", "", "AB")])
    assert [is_greedy for _, is_greedy in answers] == [True, False, False, False, False]
    losses = [loss for loss, _ in answers]
    assert losses[0] == min(losses) < min(losses[1:]) - 0.5


def test_measurements_are_recorded(llava_checkpoint, tokenizer, videos):
    model = llava(llava_checkpoint, **SELECT)
    likelihoods(model, [(videos[0], "A red circle."), (videos[1], "B")])
    first, second = model._selecting.records
    assert (first.task, first.split, first.doc_id, second.doc_id) == ("asked", "test", 0, 1)
    text = len(tokenizer(f"{BEFORE}\n{PROMPT}{BEHIND}").input_ids)
    assert (first.visual_tokens, first.visual_tokens_kept, first.input_tokens) == (36, 12, text + 12)
    assert first.output_tokens == len(tokenizer("A red circle.<|im_end|>\n").input_ids)
    assert first.video_seconds > 0
    assert 0 < first.selector_seconds < first.time_to_first_token_seconds
    model.clean()
    assert model.flexselect_results["overall"]["samples"] == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_are_finite_in_half_precision(llava_checkpoint, videos, dtype):
    answers = likelihoods(llava(llava_checkpoint, **{**SELECT, "dtype": dtype}), [(videos[0], t) for t in TARGETS])
    wanted = likelihoods(llava(llava_checkpoint, **SELECT), [(videos[0], target) for target in TARGETS])
    for (loss, _), (exact_loss, _) in zip(answers, wanted, strict=True):
        assert math.isfinite(loss)
        assert loss == pytest.approx(exact_loss, rel=0.2)  # rounding may keep other tokens


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("bad", ["missing", "empty", "text"])
def test_an_unreadable_video_always_stops_the_run(tmp_path, llava_checkpoint, videos, strict, bad):
    """There is no likelihood to answer with."""
    path = tmp_path / "bad.mp4"
    if bad != "missing":
        path.write_bytes(b"" if bad == "empty" else b"text" * 99)
    model = llava(llava_checkpoint, **SELECT, strict=strict)
    with pytest.raises(VideoError, match=rf"^{path}: ") as caught:
        likelihoods(model, [(videos[0], "A"), (str(path), "A")])
    assert "\n" not in str(caught.value)


def test_a_question_without_a_video_is_refused(llava_checkpoint):
    model = llava(llava_checkpoint, **SELECT)
    arguments: tuple[Any, ...] = (PROMPT, "A", lambda doc: [], 0, "asked", "test")
    model.task_dict["asked"] = {"test": ["a document"]}
    with pytest.raises(FlexSelectError, match="answers questions about a video"):
        model.loglikelihood([Instance("loglikelihood", arguments, 0, {"task": "asked", "doc_id": 0, "repeats": 1})])


def test_a_programming_error_surfaces(llava_checkpoint, videos, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(llava_video_frames, "resize_frames", fail)
    with pytest.raises(RuntimeError, match="ours"):
        likelihoods(llava(llava_checkpoint, **SELECT, strict="false"), [(videos[0], "A")])
