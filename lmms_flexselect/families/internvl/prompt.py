"""How InternVL is told of frames: ``Frame7: <img>…</img>``, and which tokens of that belong to which frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN

VIDEO_MARK = "<video>"
START, END = "<img>", "</img>"
FRAME_LABELS = ("numbered", "bare")

# What the original InternVL2.5 says before anything else.
SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
)
SYSTEM_MESSAGES = {"internvl2_5": SYSTEM_MESSAGE, "none": None}

_MARKS = re.compile(f"({re.escape(VIDEO_MARK)}|{re.escape(IMAGE_TOKEN)})(\n?)")
_LONGEST_LABEL = 16  # tokens of "Frame1: "


@dataclass
class Tokens:
    """A prompt with its media spelled out.

    Attributes
    ----------
    ids
        ``(tokens,)`` int64.
    video, frame
        ``(tokens,)`` int64: video and frame that a token belongs to, its label and marks too; -1 elsewhere.
    """

    ids: Tensor
    video: Tensor
    frame: Tensor


def spell_out(
    text: str, images: Sequence[int], videos: Sequence[int], tokenizer: Any, tokens_per_tile: int, labels: str
) -> Tokens:
    """Token ids of a prompt.

    Parameters
    ----------
    text
        With `VIDEO_MARK` where a video belongs and `IMAGE_TOKEN` where an image does.
    images
        How many tiles each image has.
    videos
        How many frames each video has.
    tokenizer
        Knows the marks as special tokens.
    tokens_per_tile
        Visual tokens of a tile or frame.
    labels
        ``"numbered"``: each frame on a line ``Frame7: <img>…</img>``, as lmms-eval asks; ``"bare"``: one after the
        other, with nothing between them and the question, as the reference asks InternVL2.5.

    Raises
    ------
    FlexSelectError
        If marks and media do not match in number.
    """
    waiting_images, waiting_videos = list(images), list(videos)
    owners: list[tuple[int, int, int]] = []  # of each <img>: video or -1, frame, tiles

    def medium(match: re.Match[str]) -> str:
        waiting = waiting_videos if match[1] == VIDEO_MARK else waiting_images
        if not waiting:
            raise FlexSelectError(f"the prompt has more {match[1]} than there are of them")
        count = waiting.pop(0)
        one = f"{START}{IMAGE_TOKEN}{END}"
        if match[1] != VIDEO_MARK:
            owners.append((-1, -1, count))
            return one + match[2]
        video = len(videos) - len(waiting_videos) - 1
        owners.extend((video, frame, 1) for frame in range(count))
        if labels == "bare":
            return one * count
        return "\n".join(f"Frame{number}: {one}" for number in range(1, count + 1)) + match[2]

    spelled = _MARKS.sub(medium, text)
    if waiting_images or waiting_videos:
        left = len(waiting_images) + len(waiting_videos)
        raise FlexSelectError(f"the prompt has no place for {left} of its images or videos")
    ids = torch.tensor(tokenizer(spelled).input_ids)
    if not owners:
        return Tokens(ids, torch.full_like(ids, -1), torch.full_like(ids, -1))
    return _expanded(ids, owners, tokenizer, tokens_per_tile, labels == "numbered")


def _expanded(
    ids: Tensor, owners: list[tuple[int, int, int]], tokenizer: Any, tokens_per_tile: int, labelled: bool
) -> Tokens:
    """One context token an image or frame, made as many as it has, and all tokens told whose they are."""
    triple = tokenizer.convert_tokens_to_ids([START, IMAGE_TOKEN, END])
    # A question may speak of <img>, too; what was spelled out above has its one context token inside.
    starts = (ids.unfold(0, 3, 1) == torch.tensor(triple)).all(1).nonzero().squeeze(-1).tolist()
    video, frame = torch.full_like(ids, -1), torch.full_like(ids, -1)
    sizes = torch.ones_like(ids)
    behind = 0
    for (own_video, own_frame, tiles), first in zip(owners, starts, strict=True):
        last = first + 2
        sizes[first + 1 : last] = tiles * tokens_per_tile
        if own_video >= 0:
            label = behind if own_frame else first
            if labelled and not own_frame:
                label = _first_label(ids, first, tokenizer)
            video[label : last + 1], frame[label : last + 1] = own_video, own_frame
        behind = last + 1
    return Tokens(*(each.repeat_interleave(sizes) for each in (ids, video, frame)))


def _first_label(ids: Tensor, start: int, tokenizer: Any) -> int:
    """Where the label of a video's first frame begins: in the middle of the text that is before it."""
    for label in range(start - 1, max(-1, start - _LONGEST_LABEL), -1):
        if "Frame1" in tokenizer.decode(ids[label:start].tolist()):
            return label
    return start
