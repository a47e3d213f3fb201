"""selector=lite in the three lmms-eval classes, on random checkpoints and random selectors as published."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import decord
import pytest
import torch
from transformers import AutoTokenizer

from lmms_flexselect import FlexSelect
from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.prompt import SYSTEM_MESSAGE
from lmms_flexselect.families.internvl.tokenizer import load_tokenizer
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.lite.checkpoint import load_selector
from lmms_flexselect.lite.networks import Tower
from tests.support.evaluate import Question, ask, build, evaluate
from tests.support.internvl_checkpoint import write_original
from tests.support.internvl_tokenizers import vocabulary
from tests.support.selectors import FAMILIES, TOWERS, own_tokenizer, write_selector_folder

# Of each family: the class, its arguments, visual tokens of a stock video, and those of a frame.
ARGUMENTS: dict[str, Any] = {
    "llava_vid": {"max_frames_num": 16, "token_budget": 13},
    "qwen2_5_vl": {"max_num_frames": 16, "min_pixels": 3136, "max_pixels": 112 * 84, "token_budget": 24},
    "internvl_hf": {"num_frames": 6, "token_budget": 13},
}
COMMON = {"max_frames_per_set": 4, "dtype": "float32", "selector": "lite"}
TOKENS = {"llava_vid": 36, "qwen2_5_vl": 96, "internvl_hf": 36}
PROMPT = "What is shown?\nA. A square.\nB. A circle."
BARE = "the published selector was trained on bare frames; give frame_labels=bare"


@pytest.fixture(scope="module")
def internvl_checkpoint(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("internvl") / "internlm2", "internlm2")


@pytest.fixture(scope="module")
def checkpoints(random_checkpoint, llava_checkpoint, internvl_checkpoint) -> dict[str, Path]:
    return {"llava_vid": llava_checkpoint, "qwen2_5_vl": random_checkpoint, "internvl_hf": internvl_checkpoint}


@pytest.fixture(scope="module")
def towers(checkpoints) -> dict[str, Tower]:
    qwen = json.loads((checkpoints["qwen2_5_vl"] / "config.json").read_text())["vision_config"]
    return {
        "llava_vid": Tower("llava_vid", 48, TOWERS["llava_vid"].reading),
        "qwen2_5_vl": Tower("qwen2_5_vl", qwen["hidden_size"], {"spatial_merge_size": qwen["spatial_merge_size"]}),
        "internvl_hf": TOWERS["internvl_hf"],
    }


@pytest.fixture
def write(checkpoints, towers, tmp_path):
    """A selector that fits a family's checkpoint, as published but for entries of its config.json."""

    def written(family, **words):
        config = json.loads((checkpoints[family] / "config.json").read_text())
        size = {} if family == "internvl_hf" else {"vocabulary_size": _vocabulary(config)}
        return write_selector_folder(tmp_path / f"selector-{family}-{len(words)}", towers[family], **{**size, **words})

    return written


def _vocabulary(config):
    return config.get("text_config", config)["vocab_size"]


@pytest.fixture
def lite(checkpoints):
    """The class of a family with a selector."""

    def built(family, path, **arguments):
        given = {**COMMON, **ARGUMENTS[family], **arguments, "selector_path": path}
        return build(f"{family}_flexselect", pretrained=checkpoints[family], **given)

    return built


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


def assert_refused(made, says):
    with pytest.raises(OptionError) as caught:
        made()
    assert str(caught.value) == says


# What is kept


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_task_at_the_budget(family, checkpoints, stock_videos, write):
    arguments = {**COMMON, **ARGUMENTS[family], "selector_path": write(family)}
    results = evaluate(f"{family}_flexselect", ["mlvu_dev"], pretrained=checkpoints[family], **arguments)
    assert len(results["samples"]["mlvu_dev"]) == 4
    throughput = results["throughput"]
    assert throughput["avg_samples"] == 4
    assert throughput["avg_visual_tokens"] == TOKENS[family]
    assert throughput["avg_visual_tokens_kept"] == ARGUMENTS[family]["token_budget"]
    assert 0 < throughput["avg_selector_seconds"] < throughput["avg_time_to_first_token_seconds"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_results_say_which_selector_it_was_and_how_it_was_read(family, write, lite, videos):
    path = write(family)
    model = lite(family, path)
    ask(model, [Question(PROMPT, (videos[0],))])
    (record,) = model._selecting.records
    budget = ARGUMENTS[family]["token_budget"]
    assert (record.visual_tokens, record.visual_tokens_kept) == (TOKENS[family], budget)
    model.clean()
    options = model.flexselect_results["options"]
    assert {name: options[name] for name in ("selector", "selector_path", "reduction")} == {
        "selector": "lite",
        "selector_path": str(path),
        "reduction": "max",
    }
    assert model.flexselect_results["overall"]["visual_tokens_kept"] == budget


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("words", "given", "reduction"),
    [
        ({"drop_func_name": "mean"}, {}, "mean"),
        ({"flexselect": {"reduction": "mean"}}, {}, "mean"),
        ({"drop_func_name": "mean"}, {"reduction": "max"}, "max"),
        ({"drop_func_name": "token_selection"}, {"reduction": "mean"}, "mean"),
    ],
    ids=str,
)
def test_it_is_read_with_its_own_reduction_unless_another_is_given(family, words, given, reduction, write, lite):
    model = lite(family, write(family, **words), **given)
    assert model.options.reduction == reduction
    assert model._selecting._flexselect.selector.reduction == reduction


def test_scores_and_answers_are_the_python_apis(tmp_path, checkpoints, towers, write, lite, videos):
    """Frames read, put into a prompt, selected and answered by hand."""
    path = write("llava_vid")
    model = lite("llava_vid", path, dump_selection=tmp_path / "dump")
    answers = ask(model, [Question(PROMPT, (video,)) for video in videos[:2]])
    checkpoint = str(checkpoints["llava_vid"])
    config = LlavaVideoConfig.from_checkpoint(checkpoint)
    family = LlavaVideo(LlavaVideoForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32))
    own = load_selector(str(path), towers["llava_vid"], torch.float32)
    flexselect = FlexSelect(family.lite(own), 13, max_frames_per_set=4, round_budget=False)
    reference = FlexSelect(family.reference_layer(3), 13, max_frames_per_set=4, round_budget=False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    behind = f"\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    for number, video in enumerate(videos[:2]):
        frames = torch.from_numpy(decord.VideoReader(video).get_batch(range(0, 48, 8)).asnumpy())
        ids = torch.tensor([[*tokenizer(before).input_ids, VIDEO_TOKEN, *tokenizer(behind).input_ids]])
        (prompt,) = family.prompts({"input_ids": ids, "videos": [frames]})
        selection = flexselect(prompt)
        arrays, _ = read_selection(tmp_path / "dump" / f"asked__test__{number}.npz")
        assert arrays["scores"].tolist() == selection.scores.tolist()
        assert arrays["kept"].tolist() == selection.visual_kept.tolist()
        assert arrays["kept"].tolist() != reference(prompt).visual_kept.tolist()
        (new,) = family.generate([selection.prompt], max_new_tokens=6, do_sample=False)
        assert answers[number] == tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_no_smaller_than_the_video_changes_nothing(generated, family, write, lite, videos):
    whole = lite(family, write(family), token_budget=96)
    answers = ask(whole, [Question(PROMPT, (videos[0],))])
    labels = {"frame_labels": "bare"} if family == "internvl_hf" else {}
    paired = lite(family, "none", selector="none", **labels)
    assert ask(paired, [Question(PROMPT, (videos[0],))]) == answers
    (got, _), (want, _) = generated
    assert torch.equal(got["inputs_embeds"], want["inputs_embeds"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_runs_as_often_as_without_a_selector(family, write, lite, videos):
    """It is most of the work: once a chunk of a video."""
    path = write(family)
    runs: dict[str, list[int]] = {}
    for selector in ("lite", "none"):
        model = lite(family, path if selector == "lite" else "none", selector=selector)
        runs[selector] = []
        of_family = model._selecting._family
        inner = of_family.model.model
        towers = {
            "llava_vid": lambda model: model.vision_tower["vision_tower"]["vision_model"],
            "qwen2_5_vl": lambda model: model.visual,
            "internvl_hf": lambda model: model.vision_tower,
        }
        chunk = {"llava_vid": "frames_per_chunk", "internvl_hf": "tiles_per_chunk"}.get(family)
        if chunk is not None:
            setattr(of_family, chunk, 4)
        towers[family](inner).register_forward_pre_hook(partial(_count, runs[selector]))
        ask(model, [Question(PROMPT, (video,)) for video in videos[:2]])
    once = 1 if family == "qwen2_5_vl" else 2
    assert len(runs["lite"]) == len(runs["none"]) == 2 * once


def _count(calls, *_):
    calls.append(1)


def test_qwens_batches_keep_the_same(tmp_path, write, lite, videos):
    path, kept, answers = write("qwen2_5_vl"), {}, {}
    for size in (1, 2):
        model = lite("qwen2_5_vl", path, batch_size=size, dump_selection=tmp_path / str(size))
        questions = [Question(PROMPT, (videos[0],)), Question("And here?", (videos[1], videos[2]))]
        answers[size] = ask(model, questions)
        kept[size] = [read_selection(file)[0] for file in sorted((tmp_path / str(size)).iterdir())]
    assert answers[1] == answers[2]
    for one, two in zip(kept[1], kept[2], strict=True):
        assert one["kept"].sum() == 24
        assert one["kept"].tolist() == two["kept"].tolist()


# InternVL's frame labels


@pytest.mark.parametrize(("system", "back"), [("internvl2_5", True), ("none", False)])
def test_internvls_published_selector_is_read_on_bare_frames_and_shifted(
    tmp_path, generated, checkpoints, write, lite, videos, system, back
):
    """Its window stands where its own tokenizer has the frames: before the model's, or behind."""
    path = write("internvl_hf")
    model = lite("internvl_hf", path, dump_selection=tmp_path / "dump", system_message=system)
    assert model.options.frame_labels == "bare"
    assert model._selecting._family.shift_window
    ask(model, [Question(PROMPT, (videos[0],))])
    theirs, own = load_tokenizer(str(checkpoints["internvl_hf"])), AutoTokenizer.from_pretrained(path)
    turns = {"internvl2_5": f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n", "none": ""}
    before = f"{turns[system]}<|im_start|>user\n"
    start, own_start = (len(tokenizer(before).input_ids) for tokenizer in (theirs, own))
    assert start != own_start
    assert (start < own_start) == back
    arrays, _ = read_selection(tmp_path / "dump" / "asked__test__0.npz")
    assert arrays["column"].tolist() == list(range(own_start, own_start + 36))
    assert arrays["frame"].tolist() == [frame for frame in range(6) for _ in range(6)]
    assert arrays["kept"].sum() == 13
    assert generated[-1][0]["inputs_embeds"].shape[1] == len(arrays["input_ids"])
    # Visual tokens outside the window stay, whatever their scores; text may go instead.
    visual = model.tokenizer.convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>", "</img>"])
    kept = [own_start + place for place in arrays["kept"].nonzero()[0].tolist()]
    video = range(start, start + 36)
    outside = [column for column in video if not own_start <= column < own_start + 36]
    assert len(outside) == abs(start - own_start)
    left = sum(token in visual for token in arrays["input_ids"].tolist())
    assert left == len(outside) + sum(column in video for column in kept)


def test_internvls_published_selector_refuses_numbered_frames(write, lite):
    assert_refused(
        lambda: lite("internvl_hf", write("internvl_hf"), frame_labels="numbered"), f"frame_labels=numbered: {BARE}"
    )


@pytest.mark.parametrize("labels", ["numbered", "bare"])
def test_internvls_selector_from_here_is_read_on_either(tmp_path, checkpoints, write, lite, videos, labels):
    path = write("internvl_hf", flexselect={"reduction": "max"})
    model = lite("internvl_hf", path, dump_selection=tmp_path / "dump", frame_labels=labels)
    family = model._selecting._family
    assert not family.shift_window
    visual, start, end = family.selector_mark_ids
    own = AutoTokenizer.from_pretrained(path)
    assert own.convert_ids_to_tokens([visual, start, end]) == ["<IMG_CONTEXT>", "<img>", "</img>"]
    ask(model, [Question(PROMPT, (videos[0],)), Question(PROMPT, (videos[0], videos[1]))])
    arrays, _ = read_selection(tmp_path / "dump" / "asked__test__0.npz")
    assert arrays["kept"].sum() == 13
    assert (arrays["column"][6] - arrays["column"][5] == 1) == (labels == "bare")
    (_, record) = model._selecting.records
    assert (record.visual_tokens, record.visual_tokens_kept) == (72, 13)


def test_internvls_selector_from_here_leaves_the_labels_as_they_are_by_default(write, lite):
    model = lite("internvl_hf", write("internvl_hf", flexselect={}))
    assert model.options.frame_labels == "numbered"


def test_two_videos_are_not_for_the_published_internvl_selector(write, lite, videos):
    model = lite("internvl_hf", write("internvl_hf"))
    with pytest.raises(OptionError, match=r"^the published InternVL selector was trained on one video of bare frames"):
        ask(model, [Question(PROMPT, (videos[0], videos[1]))])


# What is refused


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("other", FAMILIES)
def test_a_selector_of_another_family_is_refused(family, other, write, lite):
    if family == other:
        return
    # With a tokenizer, so that it is not for want of one.
    path = write(other, tokenizer=own_tokenizer(), vocabulary_size=vocabulary("qwen2")[0])
    labels = {"frame_labels": "bare"} if family == "internvl_hf" else {}
    assert_refused(
        lambda: lite(family, path, **labels),
        f"selector_path={path}: is a selector for {other}; this model needs one for {family}",
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_selector_at_that_path(family, lite, tmp_path):
    nowhere = re.escape(str(tmp_path / "nowhere"))
    with pytest.raises(OptionError, match=rf"^selector_path={nowhere}: no checkpoint could be read there \("):
        lite(family, tmp_path / "nowhere")
    with pytest.raises(OptionError, match=r"^selector=lite: give selector_path"):
        lite(family, "none")


def test_llavas_selector_is_for_one_pooling(write, lite):
    path = write("llava_vid")
    says = f"selector_path={path}: was made for mm_spatial_pool_mode=bilinear, mm_spatial_pool_stride=2; this run has"
    assert_refused(
        lambda: lite("llava_vid", path, mm_spatial_pool_mode="average"),
        f"{says} mm_spatial_pool_mode=average, mm_spatial_pool_stride=2",
    )


def test_internvls_selector_needs_its_tokenizer(write, lite):
    path = write("internvl_hf")
    for name in own_tokenizer():
        (path / name).unlink()
    with pytest.raises(OptionError, match=f"^selector_path={re.escape(str(path))}: its tokenizer "):
        lite("internvl_hf", path)
