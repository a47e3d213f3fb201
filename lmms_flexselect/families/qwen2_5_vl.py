"""Qwen2.5-VL: processor inputs to `VideoPrompt`s, and answers from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.family import (
    Family,
    Tower,
    VisualTokens,
    described,
    giving_way,
    gradients_for_selector,
    reading_inputs,
)
from lmms_flexselect.families.mrope import ROPE_RULES, VisionBlock, compact_blocks, published_positions
from lmms_flexselect.prompt import VideoPrompt, generation_inputs, left_padded

_SCORING_SECONDS_PER_UNIT = 1.0  # whatever the real sampling (algorithm.md, section 2)


@dataclass
class Qwen2_5_VL(Family):
    """Reads a `Qwen2_5_VLForConditionalGeneration`.

    Attributes
    ----------
    model
        The loaded model, on any device or devices.
    rope
        ``"published"``: positions as the model was trained with; ``"library"``: as the installed transformers
        computes them.
    seconds_per_unit
        Seconds between temporal units (pairs of frames); None takes ``second_per_grid_ts`` from the processor's
        inputs, that is, the real sampling. The paper's runs are 1.0.
    patches_per_chunk
        Patches of a video that go through the tower together: bounds memory, changes nothing.
    """

    model: Any
    rope: str = "published"
    seconds_per_unit: float | None = None
    patches_per_chunk: int = 32768
    round_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rope not in ROPE_RULES:
            raise OptionError(f"rope={self.rope!r}: must be one of {', '.join(ROPE_RULES)}")

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads."""
        vision = self.model.config.vision_config
        return Tower("qwen2_5_vl", vision.hidden_size, spatial_merge_size=vision.spatial_merge_size)

    @giving_way
    @gradients_for_selector
    def prompts(self, inputs: Mapping[str, Tensor]) -> list[VideoPrompt]:
        """Embed a processed batch: one unpadded prompt a row.

        Parameters
        ----------
        inputs
            What `Qwen2_5_VLProcessor` returns: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, padded on
            either side, and, where there are any, ``pixel_values_videos``, ``video_grid_thw``, ``second_per_grid_ts``,
            ``pixel_values``, ``image_grid_thw``; ``video_keys`` and ``left_out`` (see `Family`): the patches of a
            video that is left out are not among ``pixel_values_videos``, its grid is there.
        """
        config = self.model.config
        ids = inputs["input_ids"]
        on_cpu = ids.cpu()
        embeds = self.model.get_input_embeddings()(ids)
        of_selector = None if self.selector is None else self.selector.embed(ids)
        grids = _Grids(inputs, config, self.seconds_per_unit)
        keys, left_out = described(inputs, len(grids.videos))
        videos = self._videos(inputs, keys, left_out)
        images = self._images(inputs)
        for token, found in ((config.video_token_id, videos), (config.image_token_id, images)):
            if found:
                places = (on_cpu == token).flatten().nonzero().squeeze(-1)
                _fill_in(embeds, places, [tokens.model for tokens in found])
                if of_selector is not None:
                    _fill_in(of_selector, places, [t.selector for t in found if t.selector is not None])
        padding = inputs.get("attention_mask", torch.ones_like(on_cpu)).cpu().bool()
        waiting = iter(keys)
        rows = zip(on_cpu, embeds, padding, strict=True)
        prompts = [self._prompt(row[real], embed[_columns(real, embed)], grids, waiting) for row, embed, real in rows]
        if of_selector is not None:
            for prompt, embed, real in zip(prompts, of_selector, padding, strict=True):
                prompt.scorer = replace(prompt, inputs_embeds=embed[_columns(real, embed)])
        return prompts

    def _videos(
        self, inputs: Mapping[str, Tensor], keys: Sequence[Hashable], left_out: Sequence[bool]
    ) -> list[VisualTokens]:
        """The visual tokens of each video, a chunk of temporal units at a time: none of them sees another."""
        grids = [] if inputs.get("video_grid_thw") is None else inputs["video_grid_thw"].tolist()
        sizes = [0 if out else math.prod(grid) for grid, out in zip(grids, left_out, strict=True)]
        merge = self.model.config.vision_config.spatial_merge_size

        def encode(some: list[int]) -> list[VisualTokens]:
            of_videos = inputs["pixel_values_videos"].split(sizes)
            patches = torch.cat([of_videos[number] for number in some]) if len(some) < len(grids) else None
            patches = inputs["pixel_values_videos"] if patches is None else patches
            chunks = packed([grids[number] for number in some], self.patches_per_chunk)
            parts = patches.split([sum(map(math.prod, chunk)) for chunk in chunks])
            found = [self._encode("video", part, chunk) for part, chunk in zip(parts, chunks, strict=True)]
            tokens = [math.prod(grids[number]) // merge**2 for number in some]
            model = torch.cat([each.model for each in found]).split(tokens)
            own = [each.selector for each in found if each.selector is not None]
            selector = torch.cat(own).split(tokens) if own else [None] * len(some)
            return list(starmap(VisualTokens, zip(model, selector, strict=True)))

        return self.visual_tokens(keys, left_out, encode)

    def _images(self, inputs: Mapping[str, Tensor]) -> list[VisualTokens]:
        if inputs.get("pixel_values") is None:
            return []
        return [self._encode("image", inputs["pixel_values"], inputs["image_grid_thw"].tolist())]

    def _encode(self, kind: str, pixels: Tensor, grids: Sequence[tuple[int, int, int]]) -> VisualTokens:
        """Visual tokens of some media, or of a part of one, from their patches."""
        encode = self.model.get_video_features if kind == "video" else self.model.get_image_features
        with reading_inputs(self.model.model.visual.merger) as read:
            features = torch.cat(list(encode(pixels, torch.tensor(grids, device=pixels.device)).pooler_output))
        if self.selector is None:
            return VisualTokens(features, None)
        vision = self.model.config.vision_config
        order = window_order(grids, vision.spatial_merge_size, vision.window_size // vision.patch_size)
        own = self.selector_tokens(read[0])
        return VisualTokens(features, own[order.argsort().to(own.device)])

    def _prompt(self, ids: Tensor, embeds: Tensor, grids: _Grids, keys: Iterator[Hashable]) -> VideoPrompt:
        blocks = grids.blocks(ids)
        video = torch.full_like(ids, -1)
        frame = torch.full_like(ids, -1)
        videos = [b for b in blocks if b.is_video]
        for number, block in enumerate(videos):
            units, height, width = block.grid
            video[block.columns] = number
            frame[block.columns] = torch.arange(units, device=ids.device).repeat_interleave(height * width)
        scoring_step = grids.tokens_per_second * _SCORING_SECONDS_PER_UNIT

        def compact_positions(present: Tensor) -> Tensor:
            return self._positions(ids[present], compact_blocks(blocks, frame, present, scoring_step))

        own_keys = tuple(next(keys) for _ in videos)
        return VideoPrompt(
            ids,
            embeds,
            self._positions(ids, blocks),
            video,
            frame,
            [b.grid for b in videos],
            compact_positions,
            # An image's tokens are not told by their ids.
            video_keys=own_keys if len(videos) == len(blocks) else (),
        )

    def _positions(self, ids: Tensor, blocks: list[VisionBlock]) -> Tensor:
        if self.rope == "published":
            return published_positions(len(ids), blocks).to(ids.device)
        return library_positions(self.model, ids, blocks)

    @giving_way
    @torch.no_grad()
    def generate(self, prompts: list[VideoPrompt], **generate_kwargs: Any) -> list[Tensor]:
        """Answer a batch of prompts with the unchanged model.

        Decoding goes on from each prompt's last position plus one. `generate_kwargs` go to transformers' ``generate``.

        Returns
        -------
        list of Tensor
            New token ids of each prompt, ``(new,)`` int64, the prompt not included; shorter answers are padded.
        """
        inputs = generation_inputs(prompts)
        positions = left_padded([p.position_ids.T for p in prompts]).permute(2, 0, 1)
        positions = positions.to(inputs["inputs_embeds"].device)
        output = self.model.generate(**inputs, position_ids=positions, **generate_kwargs)
        return list(output[:, inputs["input_ids"].shape[1] :])


def _fill_in(embeds: Tensor, places: Tensor, features: list[Tensor]) -> None:
    """Put `features` into ``(batch, tokens, hidden)`` where `places`, counted through the batch, are."""
    found = torch.cat([each.to(embeds.device, embeds.dtype) for each in features])
    embeds.flatten(0, 1).index_copy_(0, places.to(embeds.device), found)


def packed(grids: Sequence[Sequence[int]], most: int) -> list[list[tuple[int, int, int]]]:
    """Videos of these grids, one behind the other, in chunks of whole temporal units and at most so many patches.

    A unit that is larger is a chunk by itself.
    """
    chunks: list[list[tuple[int, int, int]]] = [[]]
    room = most
    for time, height, width in grids:
        while time:
            units = min(time, max(0, room) // (height * width))
            if not units and chunks[-1]:
                chunks.append([])
                room = most
                continue
            units = max(1, units)
            chunks[-1].append((units, height, width))
            time, room = time - units, room - units * height * width
    return chunks


def _columns(real: Tensor, embeds: Tensor) -> Tensor:
    return real.nonzero().squeeze(-1).to(embeds.device)


def window_order(grids: Sequence[tuple[int, int, int]], merge: int, window: int) -> Tensor:
    """The order in which the tower has the tokens of some media: window by window, in rows of windows.

    Parameters
    ----------
    grids
        Time, height and width of each, in patches.
    merge
        Patches that become a token, along a side.
    window
        Patches along a window's side.

    Returns
    -------
    Tensor
        ``(tokens,)`` int64: which token, counted in rows, is the tower's i-th.
    """
    side = window // merge
    order, before = [], 0
    for time, height, width in grids:
        rows, columns = height // merge, width // merge
        t, r, c = torch.meshgrid(*(torch.arange(size) for size in (time, rows, columns)), indexing="ij")
        of_window = (t * rows + r // side) * columns + c // side
        order.append(before + of_window.flatten().argsort(stable=True))
        before += time * rows * columns
    return torch.cat(order)


class _Grids:
    """Hands out the processor's grids in the order in which the prompts use them up."""

    def __init__(self, inputs: Mapping[str, Tensor], config: Any, seconds_per_unit: float | None) -> None:
        merge = config.vision_config.spatial_merge_size
        self.tokens_per_second: float = config.vision_config.tokens_per_second
        self._video_token: int = config.video_token_id
        self._image_token: int = config.image_token_id

        def merged(key: str) -> list[list[int]]:
            grids = inputs.get(key)
            return [] if grids is None else [[t, h // merge, w // merge] for t, h, w in grids.tolist()]

        videos = merged("video_grid_thw")
        seconds = inputs.get("second_per_grid_ts")
        if seconds_per_unit is not None or seconds is None:
            per_unit = [1.0 if seconds_per_unit is None else seconds_per_unit] * len(videos)
        else:
            per_unit = [float(s) for s in seconds]
        self.videos = list(zip(videos, per_unit, strict=True))
        self._videos = iter(self.videos)
        self._images = iter(merged("image_grid_thw"))

    def blocks(self, ids: Tensor) -> list[VisionBlock]:
        """The vision blocks of the next prompt in the batch."""
        blocks = []
        runs = ((ids == self._video_token) * 2 + (ids == self._image_token) * 1).tolist()
        column = 0
        while column < len(runs):
            if not runs[column]:
                column += 1
                continue
            is_video = runs[column] == 2
            grid, seconds = next(self._videos) if is_video else (next(self._images), 0.0)
            tokens = grid[0] * grid[1] * grid[2]
            step = self.tokens_per_second * seconds if is_video else 1.0
            columns = torch.arange(column, column + tokens, device=ids.device)
            blocks.append(VisionBlock(columns, (grid[0], grid[1], grid[2]), step, is_video))
            column += tokens
        return blocks


def library_positions(model: Any, ids: Tensor, blocks: list[VisionBlock]) -> Tensor:
    """Positions by the installed transformers' `get_rope_index`: ``(3, tokens)`` int64."""
    config = model.config
    merge = config.vision_config.spatial_merge_size

    def grids(videos: bool) -> Tensor | None:
        own = [[t, h * merge, w * merge] for t, h, w in (b.grid for b in blocks if b.is_video == videos)]
        return torch.tensor(own, device=ids.device) if own else None

    seconds = [b.step / config.vision_config.tokens_per_second for b in blocks if b.is_video]
    arguments: dict[str, Any] = {
        "image_grid_thw": grids(videos=False),
        "video_grid_thw": grids(videos=True),
        "second_per_grid_ts": torch.tensor(seconds, device=ids.device) if seconds else None,
        "attention_mask": torch.ones_like(ids)[None],
    }
    # Releases up to 5.2 find the modalities from the ids; later ones want to be told (1 image, 2 video).
    if "mm_token_type_ids" in inspect.signature(model.model.get_rope_index).parameters:
        kinds = (ids == config.image_token_id) * 1 + (ids == config.video_token_id) * 2
        arguments["mm_token_type_ids"] = kinds[None]
    positions, _ = model.model.get_rope_index(ids[None], **arguments)
    return positions[:, 0]
