"""Questions about a few videos, for each family on random weights: inputs, with and without a video's pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmms_flexselect import Qwen2_5_VL
from lmms_flexselect.families.family import Family
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.llava_video.family import LlavaVideo
from lmms_flexselect.lite.checkpoint import load_selector
from tests.support.internvl_inputs import batch, tokens_of
from tests.support.internvl_tokenizers import vocabulary
from tests.support.internvl_weights import random_native
from tests.support.random_models import llava_inputs, llava_video, qwen2_5_vl, video_inputs
from tests.support.selectors import FAMILIES, TOWERS, write_selector_folder

SPECIAL = vocabulary("internlm2")[1]
OWN_SPECIAL = {"<IMG_CONTEXT>": 240, "<img>": 241, "</img>": 242}
ANSWER = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
TEXT = 6  # tokens of a question
__all__ = ["ANSWER", "FAMILIES", "Question", "family", "inputs_of", "lite_selector", "selector"]


@dataclass(frozen=True)
class Question:
    """`number` makes other text behind the videos, `opening` other text in front of them, of `before` tokens."""

    videos: tuple[int, ...]
    number: int
    before: int = 4
    opening: int = 0


def family(name: str, **options: Any) -> Any:
    """A new one on the same weights."""
    model = _model(name)
    if name == "llava_vid":
        return LlavaVideo(model, **options)
    if name == "qwen2_5_vl":
        return Qwen2_5_VL(model, **options)
    own = OWN_SPECIAL["<IMG_CONTEXT>"], OWN_SPECIAL["<img>"], OWN_SPECIAL["</img>"]
    return InternVL(model, (SPECIAL["<img>"], SPECIAL["</img>"]), selector_mark_ids=own, **options)


def selector(name: str, of: Family, kind: str) -> Any:
    """``reference`` or ``lite``."""
    return of.reference_layer(2) if kind == "flexselect" else of.lite(lite_selector(name))


def inputs_of(name: str, asked: Question, pixels_omitted: Sequence[bool] = (), frames: int = 10) -> dict[str, Any]:
    """What `prompts` of the family is given; keys name the videos. The first row of a batch of one."""
    pixels_omitted = list(pixels_omitted) or [False] * len(asked.videos)
    of_keys = {"video_keys": [("video", video) for video in asked.videos], "pixels_omitted": pixels_omitted}
    shapes: dict[str, Any] = {"llava_vid": (frames, 56, 56), "qwen2_5_vl": (frames, 2, 3), "internvl_hf": frames}
    row: list[Any] = [asked.before]
    for _ in asked.videos:
        row += [("video", shapes[name]), 2]
    row[-1] = TEXT
    if name == "internvl_hf":
        tokens, own = (tokens_of(row, special, True, seed) for special, seed in ((SPECIAL, 0), (OWN_SPECIAL, 1)))
        inputs = batch([tokens], [0])
        for prefix, ids, each in (("token_", "input_ids", tokens), ("selector_", "selector_ids", own)):
            inputs[ids] = _worded(torch.tensor([[token.id for token in each]]), asked)
            inputs |= {f"{prefix}{n}": torch.tensor([[getattr(t, n) for t in each]]) for n in ("video", "frame")}
        inputs["pixel_values"] = torch.cat(
            [torch.zeros(0, *inputs["pixel_values"].shape[1:])]
            + [_pixels(video, frames, *inputs["pixel_values"].shape[1:]) for video in _shown(asked, pixels_omitted)]
        )
        return inputs | of_keys
    if name == "llava_vid":
        inputs = llava_inputs([row])
        every = [(_pixels(video, frames, 56, 56, 3) * 60 + 128).clamp(0, 255).byte() for video in asked.videos]
        inputs["videos"] = [None if out else video for video, out in zip(every, pixels_omitted, strict=True)]
    else:
        inputs = video_inputs([row], [1.0] * len(asked.videos))
        a_video = frames * math.prod(shapes[name][1:]) * 4
        width = inputs["pixel_values_videos"].shape[1]
        parts = [_pixels(video, a_video, width) for video in _shown(asked, pixels_omitted)]
        inputs["pixel_values_videos"] = torch.cat([torch.zeros(0, width), *parts])
    inputs["input_ids"] = _worded(inputs["input_ids"], asked)
    return inputs | of_keys


def _shown(asked: Question, pixels_omitted: Sequence[bool]) -> list[int]:
    return [video for video, out in zip(asked.videos, pixels_omitted, strict=True) if not out]


def _pixels(video: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + video))


def _worded(ids: torch.Tensor, asked: Question) -> torch.Tensor:
    """With the question's text at either end."""
    ids, number = ids.clone(), asked.number
    ids[:, -TEXT:] = 10 + (ids[:, -TEXT:] * (number + 3) + torch.arange(TEXT) * number) % 70
    if asked.opening:
        ids[:, : asked.before - 1] = 10 + (ids[:, : asked.before - 1] + 11 * asked.opening) % 70
    return ids


@cache
def _model(name: str) -> Any:
    if name == "internvl_hf":
        native = random_native("internlm2", "300m", seed=7)
        native.config.text_config.max_position_embeddings = 4096  # dynamic NTK scaling out of reach
        with TemporaryDirectory() as folder:
            native.save_pretrained(folder)
            model = load_model(folder, torch.float32)
        model.generation_config.eos_token_id = None
        return model
    return llava_video(7) if name == "llava_vid" else qwen2_5_vl(7)


@cache
def lite_selector(name: str, seed: int = 3) -> Any:
    """A FlexSelect-Lite selector's module with random weights."""
    words: dict[str, Any] = {"tokenizer": {}, "vocabulary_size": 250} if name == "internvl_hf" else {}
    with TemporaryDirectory() as folder:
        write_selector_folder(Path(folder), TOWERS[name], seed=seed, **words)
        return load_selector(folder, TOWERS[name], torch.float32)
