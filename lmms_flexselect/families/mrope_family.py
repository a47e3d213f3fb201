"""Families whose media are grids of patches and whose positions have three axes: inputs to `VideoPrompt`s."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.family import (
    Family,
    VisualTokens,
    gradients_for_selector,
    keys_and_omissions,
    retry_after_offload,
)
from lmms_flexselect.families.mrope import ROPE_RULES, VisionBlock, compact_blocks, published_positions
from lmms_flexselect.method.prompt import VideoPrompt


@dataclass
class MropeFamily(Family):
    """What families with multimodal rotary positions have in common.

    Attributes
    ----------
    model
        The loaded model, on any device or devices.
    rope
        ``"published"``: positions as the model was trained with; ``"library"``: as the installed transformers
        computes them.
    patches_per_chunk
        Patches of a video that go through the tower together: bounds memory, changes nothing.
    """

    model: Any
    rope: str = field(default="published", kw_only=True)
    patches_per_chunk: int = field(default=32768, kw_only=True)
    units_apart: ClassVar[bool] = False
    """Whether there is text between a video's temporal units, so that each is a block of positions of its own."""

    def __post_init__(self) -> None:
        if self.rope not in ROPE_RULES:
            raise OptionError(f"rope={self.rope!r}: must be one of {', '.join(ROPE_RULES)}")

    @abstractmethod
    def _encode(self, kind: str, pixels: Tensor, grids: Sequence[Sequence[int]]) -> VisualTokens:
        """Visual tokens of some media (``"video"`` or ``"image"``), or of a part of one, from their patches."""

    def _steps(self, inputs: Mapping[str, Any]) -> list[float]:
        """Positions per temporal unit, of each video of a batch."""
        return [1.0] * _length(inputs.get("video_grid_thw"))

    def _scoring_step(self) -> float:
        """Positions per temporal unit in a scoring prompt."""
        return 1.0

    @retry_after_offload
    @gradients_for_selector
    def prompts(self, inputs: Mapping[str, Any]) -> list[VideoPrompt]:
        """Embed a processed batch: one unpadded prompt a row.

        Parameters
        ----------
        inputs
            What the checkpoint's processor returns: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, padded
            on either side, and, where there are any, ``pixel_values_videos``, ``video_grid_thw``,
            ``second_per_grid_ts``, ``pixel_values``, ``image_grid_thw``; ``video_keys`` and ``pixels_omitted`` (see
            `Family`): the patches of a video that is left out are not among ``pixel_values_videos``, its grid is
            there.
        """
        config = self.model.config
        ids = inputs["input_ids"]
        on_cpu = ids.cpu()
        embeds = self.model.get_input_embeddings()(ids)
        of_selector = None if self.selector is None else self.selector.embed(ids)
        grids = _Grids(inputs, config, self._steps(inputs), self.units_apart)
        keys, pixels_omitted = keys_and_omissions(inputs, _length(inputs.get("video_grid_thw")))
        extras: dict[str, Tensor] = {}
        videos = self._videos(inputs, keys, pixels_omitted)
        for token, found in ((config.video_token_id, videos), (config.image_token_id, self._images(inputs))):
            if not found:
                continue
            places = (on_cpu == token).flatten().nonzero().squeeze(-1)
            _fill_in(embeds, places, [tokens.model for tokens in found])
            for name, like in found[0].extras.items():
                if name not in extras:
                    extras[name] = like.new_zeros((*ids.shape, *like.shape[1:]))
                _fill_in(extras[name], places, [tokens.extras[name] for tokens in found])
            if of_selector is not None:
                _fill_in(of_selector, places, [t.selector for t in found if t.selector is not None])
        padding = inputs.get("attention_mask", torch.ones_like(on_cpu)).cpu().bool()
        waiting = iter(keys)
        prompts = []
        for row, real in enumerate(padding):
            columns = real.nonzero().squeeze(-1)
            own = {name: each[row, columns.to(each.device)] for name, each in extras.items()}
            embed = embeds[row, columns.to(embeds.device)]
            prompt = self._with_extras(self._prompt(on_cpu[row, columns], embed, grids, waiting), own)
            if of_selector is not None:
                read = of_selector[row, columns.to(of_selector.device)]
                prompt.scorer = replace(prompt, inputs_embeds=read, extras={}, decoder_arguments=dict)
            prompts.append(prompt)
        return prompts

    def _with_extras(self, prompt: VideoPrompt, extras: dict[str, Tensor]) -> VideoPrompt:
        """The prompt with what its visual tokens' `VisualTokens.extras` say of each token, zero for text."""
        return replace(prompt, extras=extras)

    def _videos(
        self, inputs: Mapping[str, Any], keys: Sequence[Hashable], pixels_omitted: Sequence[bool]
    ) -> list[VisualTokens]:
        """The visual tokens of each video, a chunk of temporal units at a time: none of them sees another."""
        grids = [] if inputs.get("video_grid_thw") is None else inputs["video_grid_thw"].tolist()
        sizes = [0 if out else math.prod(grid) for grid, out in zip(grids, pixels_omitted, strict=True)]
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
            extras = {name: torch.cat([each.extras[name] for each in found]).split(tokens) for name in found[0].extras}
            return [
                VisualTokens(model[i], selector[i], {name: each[i] for name, each in extras.items()})
                for i in range(len(some))
            ]

        return self.visual_tokens(keys, pixels_omitted, encode)

    def _images(self, inputs: Mapping[str, Any]) -> list[VisualTokens]:
        if inputs.get("pixel_values") is None:
            return []
        return [self._encode("image", inputs["pixel_values"], inputs["image_grid_thw"].tolist())]

    def _prompt(self, ids: Tensor, embeds: Tensor, grids: _Grids, keys: Iterator[Hashable]) -> VideoPrompt:
        blocks, of_videos = grids.blocks(ids)
        video = torch.full_like(ids, -1)
        frame = torch.full_like(ids, -1)
        for block in blocks:
            if block.is_video:
                units, height, width = block.grid
                video[block.columns] = block.video
                frame[block.columns] = block.unit + torch.arange(units).repeat_interleave(height * width)

        def compact_positions(present: Tensor) -> Tensor:
            return self._positions(ids[present], compact_blocks(blocks, frame, present, self._scoring_step()))

        own_keys = tuple(next(keys) for _ in of_videos)
        return VideoPrompt(
            ids,
            embeds,
            self._positions(ids, blocks),
            video,
            frame,
            of_videos,
            compact_positions,
            label=self._labels(ids, video, frame, blocks),
            # An image's tokens are not told by their ids.
            video_keys=own_keys if all(block.is_video for block in blocks) else (),
        )

    def _labels(self, ids: Tensor, video: Tensor, frame: Tensor, blocks: list[VisionBlock]) -> Tensor | None:
        """`VideoPrompt.label`; the labels' frames are written into `frame`."""
        return None

    def _positions(self, ids: Tensor, blocks: list[VisionBlock]) -> Tensor:
        if self.rope == "published":
            return published_positions(len(ids), blocks).to(ids.device)
        return library_positions(self.model, ids, blocks)


def _length(values: Any) -> int:
    return 0 if values is None else len(values)


def _fill_in(rows: Tensor, places: Tensor, features: list[Tensor]) -> None:
    """Put `features` into ``(batch, tokens, …)`` where `places`, counted through the batch, are."""
    found = torch.cat([each.to(rows.device, rows.dtype) for each in features])
    rows.flatten(0, 1).index_copy_(0, places.to(rows.device), found)


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


class _Grids:
    """Hands out the processor's grids in the order in which the prompts use them up."""

    def __init__(self, inputs: Mapping[str, Any], config: Any, steps: Sequence[float], units_apart: bool) -> None:
        merge = config.vision_config.spatial_merge_size
        self._tokens = {config.video_token_id: 2, config.image_token_id: 1}
        self._units_apart = units_apart

        def merged(key: str) -> list[tuple[int, int, int]]:
            grids = inputs.get(key)
            return [] if grids is None else [(t, h // merge, w // merge) for t, h, w in grids.tolist()]

        self._videos = iter(list(zip(merged("video_grid_thw"), steps, strict=True)))
        self._images = iter(merged("image_grid_thw"))

    def blocks(self, ids: Tensor) -> tuple[list[VisionBlock], list[tuple[int, int, int]]]:
        """The vision blocks of the next prompt in the batch, and the grids of its videos."""
        blocks: list[VisionBlock] = []
        of_videos: list[tuple[int, int, int]] = []
        runs = sum((ids == token) * kind for token, kind in self._tokens.items()).tolist()
        column, missing = 0, 0  # units of the video that was begun
        step = 1.0
        while column < len(runs):
            if not runs[column]:
                column += 1
                continue
            is_video = runs[column] == 2
            if is_video and not missing:
                grid, step = next(self._videos)
                of_videos.append(grid)
                missing = grid[0]
            time, height, width = of_videos[-1] if is_video else next(self._images)
            unit = time - missing if is_video else 0
            units = 1 if is_video and self._units_apart else time
            missing -= units if is_video else 0
            columns = torch.arange(column, column + units * height * width, device=ids.device)
            grid = (units, height, width)
            number = len(of_videos) - 1
            blocks.append(VisionBlock(columns, grid, step if is_video else 1.0, is_video, number, unit))
            column += len(columns)
        return blocks, of_videos


def library_positions(model: Any, ids: Tensor, blocks: list[VisionBlock]) -> Tensor:
    """Positions by the installed transformers' `get_rope_index`: ``(3, tokens)`` int64."""
    config = model.config
    merge = config.vision_config.spatial_merge_size
    present = [block for block in blocks if block.grid[0]]
    accepted = inspect.signature(model.model.get_rope_index).parameters

    def grids(videos: bool) -> Tensor | None:
        own = [[t, h * merge, w * merge] for t, h, w in (b.grid for b in present if b.is_video == videos)]
        return torch.tensor(own, device=ids.device) if own else None

    arguments: dict[str, Any] = {
        "image_grid_thw": grids(videos=False),
        "video_grid_thw": grids(videos=True),
        "attention_mask": torch.ones_like(ids)[None],
    }
    if "second_per_grid_ts" in accepted and arguments["video_grid_thw"] is not None:
        seconds = [b.step / config.vision_config.tokens_per_second for b in present if b.is_video]
        arguments["second_per_grid_ts"] = torch.tensor(seconds, device=ids.device)
    # Releases up to 5.2 find the modalities from the ids; later ones want to be told (1 image, 2 video).
    if "mm_token_type_ids" in accepted:
        kinds = (ids == config.image_token_id) * 1 + (ids == config.video_token_id) * 2
        arguments["mm_token_type_ids"] = kinds[None]
    positions, _ = model.model.get_rope_index(ids[None], **arguments)
    return positions[:, 0]
