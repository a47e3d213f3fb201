"""Qwen2.5-VL: processor inputs to `VideoPrompt`s, and answers from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.family import Family, Tower, gradients_for_selector, reading_inputs
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
    """

    model: Any
    rope: str = "published"
    seconds_per_unit: float | None = None
    round_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rope not in ROPE_RULES:
            raise OptionError(f"rope={self.rope!r}: must be one of {', '.join(ROPE_RULES)}")

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads."""
        vision = self.model.config.vision_config
        return Tower("qwen2_5_vl", vision.hidden_size, spatial_merge_size=vision.spatial_merge_size)

    @gradients_for_selector
    def prompts(self, inputs: Mapping[str, Tensor]) -> list[VideoPrompt]:
        """Embed a processed batch: one unpadded prompt a row.

        Parameters
        ----------
        inputs
            What `Qwen2_5_VLProcessor` returns: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, padded on
            either side, and, where there are any, ``pixel_values_videos``, ``video_grid_thw``, ``second_per_grid_ts``,
            ``pixel_values``, ``image_grid_thw``.
        """
        config = self.model.config
        ids = inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        of_selector = None if self.selector is None else self.selector.embed(ids)
        for token, (features, own) in (
            (config.video_token_id, self._features("video", "pixel_values_videos", inputs)),
            (config.image_token_id, self._features("image", "pixel_values", inputs)),
        ):
            if features is not None:
                embeds = _filled_in(embeds, ids == token, features)
            if own is not None and of_selector is not None:
                of_selector = _filled_in(of_selector, ids == token, own)
        grids = _Grids(inputs, config, self.seconds_per_unit)
        padding = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        rows = zip(ids, embeds, padding, strict=True)
        prompts = [self._prompt(row[real], embed[real.to(embed.device)], grids) for row, embed, real in rows]
        if of_selector is not None:
            for prompt, embed, real in zip(prompts, of_selector, padding, strict=True):
                prompt.scorer = replace(prompt, inputs_embeds=embed[real.to(embed.device)])
        return prompts

    def _features(self, kind: str, key: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Visual tokens ``(tokens, hidden)``, as the model and as the selector has them."""
        if inputs.get(key) is None:
            return None, None
        grids = inputs[f"{kind}_grid_thw"]
        encode = self.model.get_video_features if kind == "video" else self.model.get_image_features
        with reading_inputs(self.model.model.visual.merger) as read:
            features = torch.cat(list(encode(inputs[key], grids).pooler_output))
        if self.selector is None:
            return features, None
        vision = self.model.config.vision_config
        order = window_order(grids.tolist(), vision.spatial_merge_size, vision.window_size // vision.patch_size)
        own = self.selector_tokens(read[0])
        return features, own[order.argsort().to(own.device)]

    def _prompt(self, ids: Tensor, embeds: Tensor, grids: _Grids) -> VideoPrompt:
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

        grids_of_videos = [b.grid for b in videos]
        return VideoPrompt(ids, embeds, self._positions(ids, blocks), video, frame, grids_of_videos, compact_positions)

    def _positions(self, ids: Tensor, blocks: list[VisionBlock]) -> Tensor:
        if self.rope == "published":
            return published_positions(len(ids), blocks).to(ids.device)
        return library_positions(self.model, ids, blocks)

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
        output = self.model.generate(**inputs, position_ids=positions, **generate_kwargs)
        return list(output[:, inputs["input_ids"].shape[1] :])


def _filled_in(embeds: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    return embeds.masked_scatter(mask.to(embeds.device)[..., None], features.to(embeds.device, embeds.dtype))


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
        places = [(t, r, c) for t in range(time) for r in range(height // merge) for c in range(width // merge)]
        windows = [(t, r // side, c // side, r, c) for t, r, c in places]
        order += [before + i for i in sorted(range(len(places)), key=windows.__getitem__)]
        before += len(places)
    return torch.tensor(order)


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
        self._videos = iter(zip(videos, per_unit, strict=True))
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
