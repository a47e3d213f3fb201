"""Qwen2.5-VL: processor inputs to `VideoPrompt`s, and answers from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.family import Family
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

    @torch.no_grad()
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
        for token, features in (
            (config.video_token_id, self._features("video", "pixel_values_videos", inputs)),
            (config.image_token_id, self._features("image", "pixel_values", inputs)),
        ):
            if features is not None:
                mask = (ids == token).to(embeds.device)
                embeds = embeds.masked_scatter(mask[..., None], features.to(embeds.device, embeds.dtype))
        grids = _Grids(inputs, config, self.seconds_per_unit)
        padding = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        rows = zip(ids, embeds, padding, strict=True)
        return [self._prompt(row[real], embed[real.to(embed.device)], grids) for row, embed, real in rows]

    def _features(self, kind: str, key: str, inputs: Mapping[str, Tensor]) -> Tensor | None:
        if inputs.get(key) is None:
            return None
        encode = self.model.get_video_features if kind == "video" else self.model.get_image_features
        return torch.cat(list(encode(inputs[key], inputs[f"{kind}_grid_thw"]).pooler_output))

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
