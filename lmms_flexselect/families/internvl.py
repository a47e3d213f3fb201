"""InternVL: token ids and tiles of pixels to `VideoPrompt`s, and answers from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.family import Family
from lmms_flexselect.prompt import VideoPrompt, consecutive, generation_inputs

IMAGE_MARKS = ("compete", "stay")


@dataclass
class InternVL(Family):
    """Reads an `InternVLForConditionalGeneration`.

    Attributes
    ----------
    model
        The loaded model, on any device or devices.
    mark_ids
        Ids of the tokens before and behind each frame's visual tokens, ``<img>`` and ``</img>``.
    image_marks
        ``"compete"``: those two are ranked with the visual tokens, and may be dropped, as the reference does for
        InternVL2.5 (258 tokens a frame); ``"stay"``: they are text (256).
    tiles_per_chunk
        Tiles that go through the vision tower together: bounds memory, changes nothing.
    """

    model: Any
    mark_ids: tuple[int, int]
    image_marks: str = "compete"
    tiles_per_chunk: int = 32

    def __post_init__(self) -> None:
        if self.image_marks not in IMAGE_MARKS:
            raise OptionError(f"image_marks={self.image_marks!r}: must be one of {', '.join(IMAGE_MARKS)}")

    @torch.no_grad()
    def prompts(self, inputs: Mapping[str, Any]) -> list[VideoPrompt]:
        """Embed a batch: one unpadded prompt a row.

        Parameters
        ----------
        inputs
            ``input_ids`` and ``attention_mask`` ``(batch, tokens)``; ``pixel_values`` ``(tiles, 3, size, size)`` of
            all images and frames in their order; ``token_video`` and ``token_frame`` ``(batch, tokens)`` int64: video
            and frame that a token belongs to, its label (``Frame7: ``) and marks too, counted from 0; -1 elsewhere.
        """
        ids = inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            places = (ids == self.model.config.image_token_id).to(embeds.device).nonzero(as_tuple=True)
            done = 0
            for chunk in pixels.split(self.tiles_per_chunk):
                features = self.model.get_image_features(pixel_values=chunk).pooler_output.flatten(0, 1)
                rows, columns = (p[done : done + len(features)] for p in places)
                embeds[rows, columns] = features.to(embeds.device, embeds.dtype)
                done += len(features)
        real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        none = torch.full_like(ids, -1)
        video, frame = (inputs.get(name, none) for name in ("token_video", "token_frame"))
        return [
            self._prompt(row[keep], embed[keep.to(embed.device)], v[keep], f[keep])
            for row, embed, v, f, keep in zip(ids, embeds, video, frame, real, strict=True)
        ]

    def _prompt(self, ids: Tensor, embeds: Tensor, video: Tensor, frame: Tensor) -> VideoPrompt:
        selectable = ids == self.model.config.image_token_id
        if self.image_marks == "compete":
            selectable |= torch.isin(ids, torch.tensor(self.mark_ids, device=ids.device))
        visual = (video >= 0) & selectable
        side = int(self.model.config.image_seq_length**0.5)
        frames = [int(frame[video == v].max()) + 1 for v in range(int(video.max()) + 1)] if len(video) else []
        return VideoPrompt(
            input_ids=ids,
            inputs_embeds=embeds,
            position_ids=consecutive(torch.ones_like(ids)),
            video=video.where(visual, -1),
            frame=frame,
            grids=[(count, side, side) for count in frames],
            compact_positions=consecutive,
            closes_up=True,
            label=video.where(~visual, -1),
        )

    @torch.no_grad()
    def generate(self, prompts: list[VideoPrompt], **generate_kwargs: Any) -> list[Tensor]:
        """Answer a batch of prompts with the unchanged model, from positions ``0 .. tokens-1`` on.

        `generate_kwargs` go to transformers' ``generate``.

        Returns
        -------
        list of Tensor
            New token ids of each prompt, ``(new,)`` int64; shorter answers are padded.
        """
        inputs = generation_inputs(prompts)
        return list(self.model.generate(**inputs, **generate_kwargs)[:, inputs["input_ids"].shape[1] :])
