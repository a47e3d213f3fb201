"""The lmms-eval class of LLaVA-Video, run by lmms-eval's own loops and evaluator over the stock data sets."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import decord
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lmms_flexselect import FlexSelect
from lmms_flexselect.dump import read_selection
from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video.llava_package import upstream_llava_vid
from lmms_flexselect.families.llava_video.lmms_eval import LlavaSelectingModel
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from tests.support.evaluate import Question, ask, build, evaluate
from tests.support.llava_checkpoint import TOWER, write_checkpoint

# A frame is 6 tokens. The stock videos are 6 seconds, so one frame a second makes 36, in two sets of 3 frames.
SMALL: dict[str, Any] = {"max_frames_num": 16, "dtype": "float32"}
SELECT: dict[str, Any] = {**SMALL, "token_budget": 12, "max_frames_per_set": 3, "reference_layer": 3}
PROMPT = "What is shown?\nA. A square.\nB. A circle."
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
BEHIND = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def asked(monkeypatch):
    """What upstream's loop asks the model."""
    calls = []

    def record(self, *args, own=LlavaSelectingModel.generate, **kwargs):
        calls.append(kwargs)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(LlavaSelectingModel, "generate", record)
    return calls


@pytest.fixture
def videos(stock_videos):
    return [str(path) for path in stock_videos["mlvu_dev"]]


@pytest.fixture(scope="module")
def tokenizer(llava_checkpoint):
    return AutoTokenizer.from_pretrained(llava_checkpoint)


def spelled(tokenizer, ids):
    """A prompt's text, with its video as upstream writes it."""
    parts: list[list[int]] = [[]]
    for token in ids.flatten().tolist():
        if token == VIDEO_TOKEN:
            parts.append([])
        else:
            parts[-1].append(token)
    return "<image>".join(tokenizer.decode(part) for part in parts)


def llava(checkpoint, **arguments):
    return build("llava_vid_flexselect", **{"pretrained": checkpoint, **SMALL, **arguments})


# What the language model reads


def test_selection_reaches_the_language_model(generated, llava_checkpoint, videos, tokenizer):
    text = len(tokenizer(f"{BEFORE}\n{PROMPT}{BEHIND}").input_ids)
    for selector, visual in (("none", 36), ("flexselect", 12), ("uniform", 12), ("random", 12)):
        model = llava(llava_checkpoint, **SELECT, selector=selector)
        ask(model, [Question(PROMPT, (videos[0],))])
        embeds = generated[-1][0]["inputs_embeds"]
        assert tuple(embeds.shape) == (1, text + visual, 64)
        assert generated[-1][0]["attention_mask"].tolist() == [[1] * (text + visual)]
        (record,) = model._selecting.records
        assert (record.visual_tokens, record.visual_tokens_kept, record.input_tokens) == (36, visual, text + visual)
        assert (record.task, record.split, record.doc_id, record.error) == ("asked", "test", 0, None)
        assert record.video_seconds > 0
        assert 0 < record.selector_seconds < record.time_to_first_token_seconds <= record.generate_seconds


@pytest.mark.parametrize("selector", ["flexselect", "uniform", "random"])
@pytest.mark.parametrize(
    ("budget", "remainder", "kept"), [(7, "spread", 7), (13, "spread", 13), (13, "drop", 12), (35, "spread", 35)]
)
def test_a_budget_is_not_rounded_to_whole_frames(llava_checkpoint, videos, selector, budget, remainder, kept):
    """As it is for Qwen2.5-VL, by its reference code."""
    arguments = {**SELECT, "token_budget": budget, "budget_remainder": remainder}
    model = llava(llava_checkpoint, **arguments, selector=selector)
    ask(model, [Question(PROMPT, (videos[0],))])
    assert [record.visual_tokens_kept for record in model._selecting.records] == [kept]


@pytest.mark.parametrize("selector", ["flexselect", "uniform", "random"])
def test_a_budget_no_smaller_than_the_video_changes_nothing(generated, llava_checkpoint, videos, selector):
    questions = [Question(PROMPT, (video,)) for video in videos]
    baseline = ask(llava(llava_checkpoint, **SELECT, selector="none"), questions)
    whole = ask(llava(llava_checkpoint, **{**SELECT, "token_budget": 36}, selector=selector), questions)
    assert whole == baseline
    half = len(generated) // 2
    assert half == len(questions)
    for (want, _), (got, _) in zip(generated[:half], generated[half:], strict=True):
        assert torch.equal(got["inputs_embeds"], want["inputs_embeds"])
        assert set(got) == set(want)


def test_more_frames_than_the_original_tokenizer_allows_are_not_cut(tmp_path, generated, videos):
    """It truncates at tokenizer_model_max_length, before any selection could choose."""
    checkpoint = write_checkpoint(tmp_path / "short", tokenizer_model_max_length=64)
    model = llava(checkpoint, selector="none", max_frames_num=40, force_sample=True)
    ask(model, [Question(PROMPT, (videos[0],))])
    (record,) = model._selecting.records
    assert record.visual_tokens == record.visual_tokens_kept == 240
    assert generated[0][0]["inputs_embeds"].shape[1] == record.input_tokens > 240


@pytest.mark.parametrize("selector", ["flexselect", "none"])
def test_answer_and_kept_tokens_are_the_python_apis(tmp_path, llava_checkpoint, videos, tokenizer, selector):
    """Frames read, put into a prompt, selected and answered by hand."""
    model = llava(llava_checkpoint, **SELECT, selector=selector, dump_selection=tmp_path)
    answers = ask(model, [Question(f"{PROMPT} ({number})", (video,)) for number, video in enumerate(videos)])

    config = LlavaVideoConfig.from_checkpoint(str(llava_checkpoint))
    family = LlavaVideo(LlavaVideoForCausalLM.from_pretrained(llava_checkpoint, config=config, dtype=torch.float32))
    flexselect = FlexSelect(
        family.reference_layer(3) if selector == "flexselect" else None, 12, max_frames_per_set=3, round_budget=False
    )
    for number, video in enumerate(videos):
        frames = torch.from_numpy(decord.VideoReader(video).get_batch(range(0, 48, 8)).asnumpy())
        behind = tokenizer(f"\n{PROMPT} ({number}){BEHIND}").input_ids
        ids = torch.tensor([[*tokenizer(BEFORE).input_ids, VIDEO_TOKEN, *behind]])
        (prompt,) = family.prompts({"input_ids": ids, "videos": [frames]})
        selection = flexselect(prompt)
        (new,) = family.generate([selection.prompt], max_new_tokens=6, do_sample=False)
        assert answers[number] == tokenizer.decode(new, skip_special_tokens=True).strip()

        arrays, sample = read_selection(tmp_path / f"asked__test__{number}.npz")
        assert arrays["kept"].tolist() == selection.visual_kept.tolist()
        assert arrays["kept"].sum() == (12 if selector == "flexselect" else 36)
        assert np.array_equal(arrays["scores"], selection.scores.numpy(), equal_nan=True)
        assert arrays["frame"].tolist() == [frame for frame in range(6) for _ in range(6)]
        assert arrays["frame_set"].tolist() == [frame % 2 for frame in range(6) for _ in range(6)]
        assert set(arrays["video"].tolist()) == {0}
        assert arrays["grids"].tolist() == [[6, 2, 3]]
        assert arrays["positions"].tolist() == [list(range(len(selection.prompt)))]
        assert arrays["input_ids"].tolist() == selection.prompt.input_ids.tolist()
        assert arrays["column"].tolist() == list(range(len(tokenizer(BEFORE).input_ids), len(prompt) - len(behind)))
        assert sample == {
            "task": "asked",
            "split": "test",
            "doc_id": number,
            "question": f"{PROMPT} ({number})",
            "family": "llava_vid",
            "videos": [{"path": video, "fps": 8.0, "frames_indices": list(range(0, 48, 8)), "video_backend": "pyav"}],
        }
    assert len(set(answers)) > 1  # or the comparison of answers would say nothing


def test_answers_do_not_depend_on_the_batch_size(tmp_path, llava_checkpoint, videos):
    questions = [Question(f"{PROMPT} ({number})", (video,)) for number, video in enumerate(videos)]
    answers, kept = {}, {}
    for size in (1, 4):
        folder = tmp_path / str(size)
        model = llava(llava_checkpoint, **SELECT, batch_size=size, dump_selection=folder)
        answers[size] = ask(model, questions)
        kept[size] = [read_selection(path)[0]["kept"].tolist() for path in sorted(folder.iterdir())]
        assert [record.doc_id for record in model._selecting.records] == [0, 1, 2, 3]
    assert answers[1] == answers[4]
    assert kept[1] == kept[4]
    assert len(kept[1]) == 4


def test_generation_settings_reach_the_model(generated, llava_checkpoint, videos):
    model = llava(llava_checkpoint, selector="none", use_cache=False)
    question = [Question(PROMPT, (videos[0],))]
    ask(model, question, max_new_tokens=3, num_beams=2)
    kwargs, output = generated[-1]
    assert (kwargs["max_new_tokens"], kwargs["num_beams"], kwargs["do_sample"]) == (3, 2, False)
    assert kwargs["use_cache"] is False
    assert "temperature" not in kwargs  # meaningless without sampling, and transformers warns of it
    assert output.shape[1] <= 3
    ask(model, question, temperature=0.5, top_p=0.9)
    kwargs, _ = generated[-1]
    assert (kwargs["do_sample"], kwargs["temperature"], kwargs["top_p"]) == (True, 0.5, 0.9)


class Recites(torch.nn.Module):
    """In place of a model's head: says the same tokens whatever was read."""

    def __init__(self, tokens: list[int], vocabulary: int) -> None:
        super().__init__()
        self.logits = torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float()
        self.said = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.said += 1
        return self.logits[self.said - 1].expand(*hidden.shape[:2], -1)


def test_an_answer_ends_where_the_models_turn_does(generated, llava_checkpoint, videos, tokenizer):
    """By upstream's keyword, also for a model whose generation settings do not name the end of a turn."""
    model = llava(llava_checkpoint, selector="none")
    model._model.generation_config.eos_token_id = None
    says = tokenizer("red circle<|im_end|> green").input_ids
    model._model.lm_head = Recites(says, len(tokenizer))
    assert ask(model, [Question(PROMPT, (videos[0],))], max_new_tokens=len(says)) == ["red circle"]
    assert generated[-1][1].tolist() == [tokenizer("red circle<|im_end|>").input_ids]


# The question


class UpstreamLoop:
    """As much of upstream's object as its `generate_until` reads; keeps the prompts that it composes."""

    rank = 0
    device = _device = torch.device("cpu")
    torch_dtype = "bfloat16"
    video_decode_backend = "decord"
    conv_template = "qwen_1_5"
    use_cache = True

    def __init__(self, tokenizer: Any, **settings: Any) -> None:
        self.tokenizer = tokenizer
        self.task_dict: dict[str, Any] = {}
        self.max_frames_num, self.fps = settings.get("max_frames_num", 16), settings.get("video_fps", 1)
        self.force_sample = settings.get("force_sample", False)
        self.add_time_instruction = settings.get("add_time_instruction", False)
        self.model = self
        self.config = SimpleNamespace(mm_use_im_start_end=False)
        self._image_processor = self
        self.prompts: list[torch.Tensor] = []

    def load_video(self, *args: Any, **kwargs: Any) -> Any:
        return upstream_llava_vid().LlavaVid.load_video(self, *args, **kwargs)

    def preprocess(self, frames: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(frames)}

    def generate(self, inputs: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.prompts.append(inputs)
        return torch.zeros(1, 1, dtype=torch.int64)

    is_simple = True

    def generate_until(self, requests: list[Any]) -> list[str]:
        return upstream_llava_vid().LlavaVid.generate_until(self, requests)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_time_instruction": True},
        {"add_time_instruction": True, "force_sample": True, "max_frames_num": 5},
        {"add_time_instruction": True, "video_fps": 2, "max_frames_num": 4},
        {"add_time_instruction": True, "video_fps": 3},
    ],
)
def test_prompts_are_those_that_upstreams_loop_composes(asked, llava_checkpoint, videos, tokenizer, settings):
    """With its own `load_video` in it; ours differ by nothing but their video."""
    questions = [Question(f"{PROMPT} ({number})", (video,)) for number, video in enumerate(videos)]
    theirs = UpstreamLoop(tokenizer, **settings)
    assert not any("can not load" in answer for answer in ask(theirs, questions))
    ask(llava(llava_checkpoint, selector="none", **settings), questions)
    assert [call["inputs"].tolist() for call in asked] == [ids.tolist() for ids in theirs.prompts]


def test_the_time_instruction_is_about_the_frames_that_are_read(asked, llava_checkpoint, videos, tokenizer):
    model = llava(llava_checkpoint, selector="none", add_time_instruction=True, max_frames_num=4, force_sample=True)
    ask(model, [Question(PROMPT, (videos[0],))])
    assert spelled(tokenizer, asked[0]["inputs"]) == (
        f"{BEFORE}<image>\nThe video lasts for 6.00 seconds, and 4 frames are uniformly sampled from it. "
        "These frames are located at 0.00s,1.88s,3.88s,5.88s.Please answer the following questions related to this "
        f"video.\n{PROMPT}{BEHIND}"
    )


def test_videomme_asks_what_it_asks_llava_vid(asked, llava_checkpoint, stock_videos, tokenizer):
    results = evaluate("llava_vid_flexselect", ["videomme"], pretrained=llava_checkpoint, selector="none", **SMALL)
    assert len(asked) == len(results["samples"]["videomme"]) == 4
    for number, call in enumerate(asked):
        text = spelled(tokenizer, call["inputs"])
        assert text.startswith(
            f"{BEFORE}<image>\nSelect the best answer to the following multiple-choice question based on the video"
        )
        assert text.endswith(f"D. A none.\nThe best answer is:{BEHIND}")
        assert f"What is shown in part {number}?" in text
        assert call["max_new_tokens"] == 16


# Through the evaluator


def test_the_four_stock_tasks_run_unchanged(tmp_path, llava_checkpoint, stock_videos):
    tasks = list(stock_videos)
    dumps = tmp_path / "dumps"
    results = evaluate(
        "llava_vid_flexselect", tasks, batch_size=2, pretrained=llava_checkpoint, dump_selection=dumps, **SELECT
    )
    assert set(results["results"]) == set(tasks)
    for task in tasks:
        assert len(results["samples"][task]) == 4
        for sample in results["samples"][task]:
            assert sample["token_counts"][0]["input_tokens"] > 12
            assert 0 < sample["token_counts"][0]["output_tokens"] <= 32
            assert "can not load" not in sample["filtered_resps"][0]
    throughput = results["throughput"]
    assert throughput["avg_samples"] == 16
    assert throughput["avg_visual_tokens"] == 36
    assert throughput["avg_visual_tokens_kept"] == 12
    assert throughput["avg_unreadable_videos"] == 0
    assert 0 < throughput["avg_selector_seconds"] < throughput["avg_time_to_first_token_seconds"]
    assert throughput["avg_peak_memory_gib"] > 0
    assert throughput["total_gen_tokens"] > 0
    assert sorted(path.name.split("__")[0] for path in dumps.iterdir()) == sorted(tasks * 4)
    _, sample = read_selection(dumps / "lvbench__train__3.npz")
    assert sample["videos"][0]["path"] == str(stock_videos["lvbench"][3])
    assert sample["question"].startswith("What is it 3?")


def test_the_results_tell_what_was_run(llava_checkpoint, videos):
    model = llava(llava_checkpoint, **SELECT, video_fps=2)
    ask(model, [Question(PROMPT, (video,)) for video in videos])
    model.clean()
    block = model.flexselect_results
    assert set(block) == {"options", "versions", "overall", "by_task", "unreadable"}
    assert block["options"]["selector"] == "flexselect"
    assert (block["options"]["token_budget"], block["options"]["reference_layer"]) == (12, 3)
    upstream = block["options"]["upstream"]
    assert upstream["video_fps"] == "2"
    assert upstream["conv_template"] == "qwen_1_5"
    assert upstream["mm_spatial_pool_mode"] == "bilinear"
    assert block["overall"] == block["by_task"]["asked"]
    assert block["overall"]["samples"] == 4
    assert block["overall"]["visual_tokens"] == 72
    assert block["unreadable"] == []


# Options


def test_what_is_filled_in_where_nothing_is_given(llava_checkpoint):
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint)
    assert (model.options.selector, model.options.token_budget, model.options.reference_layer) == (
        "flexselect",
        6720,
        4,
    )
    assert (model.options.max_frames_per_set, model.options.dtype, model.options.strict) == (64, "bfloat16", True)
    assert (model.conv_template, model.torch_dtype) == ("qwen_1_5", "bfloat16")
    # The checkpoint's own pooling; all else as upstream has it.
    assert (model.mm_spatial_pool_mode, model.mm_spatial_pool_stride) == ("bilinear", 2)
    assert (model.max_frames_num, model.fps) == (20, 1)
    assert (model.force_sample, model.add_time_instruction, model.batch_size) == (False, False, 1)
    assert (model.device.type, model.rank, model.world_size) == ("cpu", 0, 1)


@pytest.mark.parametrize("name", ["LLaVA-Video-7B-Qwen2", "llava-video-72b-qwen2"])
def test_a_published_checkpoints_name_brings_the_papers_settings(tmp_path, llava_checkpoint, name):
    folder = tmp_path / "lmms-lab" / name
    shutil.copytree(llava_checkpoint, folder)
    model = build("llava_vid_flexselect", pretrained=folder)
    assert (model.max_frames_num, model.mm_spatial_pool_mode, model.mm_spatial_pool_stride) == (512, "bilinear", 2)
    assert (model.options.token_budget, model.options.dtype, model.conv_template) == (6720, "bfloat16", "qwen_1_5")
    own = build("llava_vid_flexselect", pretrained=folder, max_frames_num=64, mm_spatial_pool_mode="average")
    assert (own.max_frames_num, own.mm_spatial_pool_mode) == (64, "average")


def test_the_checkpoints_own_entry_wins_over_the_familys_settings(tmp_path):
    own = {"token_budget": 18, "max_frames_num": 3, "reference_layer": 1}
    folder = write_checkpoint(tmp_path / "LLaVA-Video-7B-Qwen2", flexselect=own)
    model = build("llava_vid_flexselect", pretrained=folder)
    assert (model.options.token_budget, model.options.reference_layer, model.max_frames_num) == (18, 1, 3)
    assert build("llava_vid_flexselect", pretrained=folder, token_budget=7).options.token_budget == 7


@pytest.mark.parametrize("name", ["my-yi-34b", "Vicuna-7b", "trying"])
def test_any_path_will_do(tmp_path, llava_checkpoint, videos, name):
    """Upstream takes "yi" or "vicuna" anywhere in a path for a model of that kind, and stretches its positions."""
    folder = tmp_path / name
    shutil.copytree(llava_checkpoint, folder)
    questions = [Question(PROMPT, (videos[0],))]
    model = llava(folder, max_frames_num=512)
    assert ask(model, questions) == ask(llava(llava_checkpoint), questions)
    assert model.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"torch_dtype": "torch.float16"}, torch.float16),
        ({"torch_dtype": "float32", "dtype": "float32"}, torch.float32),
    ],
)
def test_weights_are_in_the_dtype_asked_for(llava_checkpoint, videos, arguments, dtype):
    model = build("llava_vid_flexselect", pretrained=llava_checkpoint, token_budget=12, **arguments)
    loaded = model._model
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.torch_dtype == model.options.dtype == str(dtype).removeprefix("torch.")
    (answer,) = ask(model, [Question(PROMPT, (videos[0],))])
    assert "can not load" not in answer


def test_two_dtypes_are_refused(llava_checkpoint):
    with pytest.raises(OptionError, match=r"^dtype=bfloat16 and torch_dtype=float16: give one of them$"):
        llava(llava_checkpoint, dtype="bfloat16", torch_dtype="float16")


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory):
    """Five patches a side, which the two poolings halve differently: to three, or to two; says average."""
    folder = tmp_path_factory.mktemp("checkpoints") / "odd"
    return write_checkpoint(folder, vision_config={**TOWER, "image_size": 70}, mm_spatial_pool_mode="average")


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ({"mm_spatial_pool_mode": "bilinear"}, 3 * 4),
        ({"mm_spatial_pool_mode": "average"}, 2 * 3),
        ({"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 3}, 2 * 3),
        ({"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 3}, 1 * 2),
        ({"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 1}, 5 * 6),
        ({}, 2 * 3),
        ({"mm_spatial_pool_mode": "bilinear", "overwrite": False}, 2 * 3),
    ],
)
def test_frames_are_pooled_as_asked_for(odd_checkpoint, videos, arguments, tokens):
    """`overwrite=false` is upstream's word for the checkpoint's own."""
    model = llava(odd_checkpoint, selector="none", **arguments)
    ask(model, [Question(PROMPT, (videos[0],))])
    (record,) = model._selecting.records
    assert record.visual_tokens == 6 * tokens


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize(
    ("settings", "indices"),
    [
        ({}, [0, 8, 16, 24, 32, 40]),
        ({"video_fps": 2}, list(range(0, 48, 4))),
        ({"max_frames_num": 3}, [0, 23, 47]),
        ({"max_frames_num": 8, "force_sample": True}, [0, 6, 13, 20, 26, 33, 40, 47]),
    ],
)
def test_frames_are_sampled_as_asked_for(tmp_path, llava_checkpoint, videos, settings, indices, decoder):
    model = llava(llava_checkpoint, **settings, video_decode_backend=decoder, dump_selection=tmp_path)
    ask(model, [Question(PROMPT, (videos[0],))])
    _, sample = read_selection(tmp_path / "asked__test__0.npz")
    (video,) = sample["videos"]
    assert video["frames_indices"] == indices
    assert video["video_backend"] == decoder
    (record,) = model._selecting.records
    assert record.visual_tokens == 6 * len(indices)


# Other things to look at


@pytest.fixture
def pictures(tmp_path):
    """Frames as MVBench's, in a folder."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (60, 40), (30 * number, 0, 90)).save(folder / f"{number:05d}.jpg")
    return folder


@pytest.mark.parametrize("decoder", ["decord", "image"])
@pytest.mark.parametrize("of_paths", [False, True], ids=["folder", "paths"])
def test_pictures_are_a_video_of_three_frames_a_second(
    tmp_path, asked, llava_checkpoint, pictures, tokenizer, of_paths, decoder
):
    media = tuple(sorted(map(str, pictures.iterdir()))) if of_paths else (str(pictures),)
    dumps = tmp_path / "dumps"
    settings = {"add_time_instruction": True, "max_frames_num": 4, "dump_selection": dumps}
    model = llava(llava_checkpoint, **settings, video_decode_backend=decoder)
    ask(model, [Question(PROMPT, media)])
    text = spelled(tokenizer, asked[0]["inputs"])
    assert "The video lasts for 2.33 seconds, and 4 frames are uniformly sampled from it." in text
    assert "located at 0.00s,0.67s,1.33s,2.00s." in text
    (record,) = model._selecting.records
    assert record.visual_tokens == 24
    _, sample = read_selection(dumps / "asked__test__0.npz")
    assert sample["videos"][0]["frames_indices"] == [0, 2, 4, 6]


@pytest.mark.parametrize("strict", ["true", "false"])
def test_images_in_memory_are_a_video_too(llava_checkpoint, strict):
    images = tuple(Image.new("RGB", (60, 40), (30 * number, 0, 90)) for number in range(7))
    model = llava(llava_checkpoint, strict=strict, max_frames_num=4)
    ask(model, [Question(PROMPT, images)])
    (record,) = model._selecting.records
    assert record.visual_tokens == 24


def test_what_is_loaded_is_upstreams_to_see(llava_checkpoint):
    """Attributes that lmms-eval and upstream's methods read."""
    model = llava(llava_checkpoint)
    assert model.max_length == 32768
    assert model.eot_token_id == model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.mm_use_im_start_end is False
    assert model.tok_decode(model.tok_encode("red circle")) == "red circle"
    assert model.is_simple
    assert isinstance(model.model, LlavaSelectingModel)
    assert isinstance(model._model, LlavaVideoForCausalLM)
    assert not model._model.training
    assert Path(model.pretrained) == llava_checkpoint
