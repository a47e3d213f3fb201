"""Prompts for InternVL, spelled out token by token, with random text and pixels: nothing of `lmms_flexselect`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.internvl_weights import IMAGE_SIZE, PATCH

A_TILE = (IMAGE_SIZE // PATCH // 2) ** 2
# A number of text tokens, ("video", frames) or ("image", tiles).
Part = int | tuple[str, int]


@dataclass(frozen=True)
class Token:
    """`kind` is text, label, mark or context; an image's marks and context belong to video -1."""

    id: int
    kind: str
    video: int = -1
    frame: int = -1


def tokens_of(row: list[Part], special: dict[str, int], numbered: bool, seed: int = 0) -> list[Token]:
    """Random text, and media in their marks; the label of a numbered frame is three tokens, and a newline before it."""
    generator = torch.Generator().manual_seed(seed)
    start, context, end = (special[name] for name in ("<img>", "<IMG_CONTEXT>", "</img>"))

    def text(count: int) -> list[int]:
        return torch.randint(10, 200, (count,), generator=generator).tolist()

    tokens: list[Token] = []
    videos = 0
    for part in row:
        if isinstance(part, int):
            tokens += [Token(number, "text") for number in text(part)]
            continue
        is_video, count = part[0] == "video", part[1]
        for frame, tiles in [(n, 1) for n in range(count)] if is_video else [(-1, count)]:
            whose = (videos if is_video else -1, frame)
            if is_video and numbered:
                tokens += [Token(number, "label", *whose) for number in text(4 if frame else 3)]
            inner = [Token(context, "context", *whose)] * (tiles * A_TILE)
            tokens += [Token(start, "mark", *whose), *inner, Token(end, "mark", *whose)]
        videos += is_video
    return tokens


def batch(rows: list[list[Token]], seeds: list[int], padding_side: str = "left") -> dict[str, Tensor]:
    """What `InternVL.prompts` is given for some prompts; a row's pixels depend on it and its seed alone."""
    longest = max(len(row) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Tensor:
        free = [[filler] * (longest - len(row)) for row in values]
        pairs = zip(free, values, strict=True)
        return torch.tensor([pad + row if padding_side == "left" else row + pad for pad, row in pairs])

    inputs = {
        "input_ids": padded([[token.id for token in row] for row in rows], 15),  # an id as any other
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "token_video": padded([[token.video for token in row] for row in rows], -1),
        "token_frame": padded([[token.frame for token in row] for row in rows], -1),
    }
    pixels = torch.cat([pixels_of(row, seed) for row, seed in zip(rows, seeds, strict=True)])
    return inputs | ({"pixel_values": pixels} if len(pixels) else {})


def pixels_of(row: list[Token], seed: int = 0) -> Tensor:
    """``(tiles, 3, size, size)``, of all of a row's media in their order."""
    tiles = sum(token.kind == "context" for token in row) // A_TILE
    return torch.randn(tiles, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
