"""InternVL: token ids and tiles of pixels to `VideoPrompt`s, and answers from them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, starmap
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.family import (
    Family,
    VisualTokens,
    gradients_for_selector,
    keys_and_omissions,
    reading_inputs,
    retry_after_offload,
)
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.lite import SelectorNetwork
from lmms_flexselect.families.internvl.prompt import END, START
from lmms_flexselect.lite.checkpoint import read_selector_config
from lmms_flexselect.lite.networks import Tower
from lmms_flexselect.method.prompt import VideoPrompt, consecutive

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
    selector_mark_ids
        Ids that a FlexSelect-Lite selector's tokenizer has for a visual token and the marks before and behind them.
    shift_window
        Repeat the published selector's offset: it was trained with the video's tokens counted in its own tokenizer's
        prompt and cut out of the model's (algorithm.md, section 4). Its i-th score then stands for the model's token
        at the selector's place: some of the text before the video may be dropped, and as many of its last visual
        tokens always stay, or the reverse.
    selector_tokenizer
        A FlexSelect-Lite selector's; None without one.
    """

    name: ClassVar[str] = "internvl_hf"
    model: Any
    mark_ids: tuple[int, int]
    image_marks: str = "compete"
    tiles_per_chunk: int = 32
    selector_mark_ids: tuple[int, int, int] | None = None
    shift_window: bool = False
    selector_tokenizer: Any = None

    def __post_init__(self) -> None:
        if self.image_marks not in IMAGE_MARKS:
            raise OptionError(f"image_marks={self.image_marks!r}: must be one of {', '.join(IMAGE_MARKS)}")

    def read_selector_files(self, path: str) -> None:
        """Its tokenizer, by which its prompt is made, and whether it is a published one (see `shift_window`)."""
        self.selector_tokenizer = SelectorNetwork.load_tokenizer(path)
        start, end, visual = self.selector_tokenizer.convert_tokens_to_ids([START, END, IMAGE_TOKEN])
        self.selector_mark_ids = (visual, start, end)
        self.shift_window = not read_selector_config(path).trained_here

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads: features after the pixel shuffle."""
        config = self.model.config
        width = config.vision_config.hidden_size * round(config.downsample_ratio**-2)
        return Tower(self.name, width)

    @retry_after_offload
    @gradients_for_selector
    def prompts(self, inputs: Mapping[str, Any]) -> list[VideoPrompt]:
        """Embed a batch: one unpadded prompt a row.

        Parameters
        ----------
        inputs
            ``input_ids`` and ``attention_mask`` ``(batch, tokens)``; ``pixel_values`` ``(tiles, 3, size, size)`` of
            all images and frames in their order; ``token_video`` and ``token_frame`` ``(batch, tokens)`` int64: video
            and frame that a token belongs to, its label (``Frame7: ``) and marks too, counted from 0; -1 elsewhere.
            For a selector ``selector_ids``, ``selector_video`` and ``selector_frame`` too: the same prompts by its
            own tokenizer. ``video_keys`` and ``pixels_omitted`` (see `Family`): the tiles of a video whose
            pixels are omitted are not among ``pixel_values``.
        """
        keys, found = self._media(inputs)
        features = [tokens.model for tokens in found]
        marks = (self.model.config.image_token_id, *self.mark_ids)
        prompts = self._rows(inputs, "input_ids", "token_", self.model.get_input_embeddings(), features, marks)
        if self.selector is not None:
            own = [tokens.selector for tokens in found if tokens.selector is not None]
            read = self._rows(inputs, "selector_ids", "selector_", self.selector.embed, own, self.selector_mark_ids)
            prompts = [
                replace(self._shifted(prompt, scorer) if self.shift_window else prompt, scorer=scorer)
                for prompt, scorer in zip(prompts, read, strict=True)
            ]
        for prompt, of_prompt in zip(prompts, keys, strict=True):
            prompt.video_keys = of_prompt
            if prompt.scorer is not None:
                prompt.scorer.video_keys = of_prompt
        return prompts

    def _media(self, inputs: Mapping[str, Any]) -> tuple[list[tuple[Hashable, ...]], list[VisualTokens]]:
        """What the videos of each prompt are known by, and all images' and videos' visual tokens in their order."""
        ids = inputs["input_ids"].cpu()
        video = inputs.get("token_video", torch.full_like(ids, -1)).cpu()
        length = self.model.config.image_seq_length
        # Of every tile: its prompt, and its video there.
        tiles = (ids == self.model.config.image_token_id).nonzero()[::length].tolist()
        owners = [(row, int(video[row, column])) for row, column in tiles]
        media = [(owner, len(list(group))) for owner, group in groupby(owners)]
        videos = [owner for owner, _ in media if owner[1] >= 0]
        keys, pixels_omitted = keys_and_omissions(inputs, len(videos))
        pixels = inputs.get("pixel_values")
        given = sum(count for owner, count in media if owner[1] < 0 or not pixels_omitted[videos.index(owner)])
        if (of_pixels := 0 if pixels is None else len(pixels)) != given:
            raise FlexSelectError(
                f"the prompts have places for {given * length} visual tokens; the pixels make {of_pixels * length}"
            )
        numbers = [videos.index(owner) if owner[1] >= 0 else None for owner, _ in media]
        of_media = [None if n is None else keys[n] for n in numbers]
        out_of_media = [n is not None and pixels_omitted[n] for n in numbers]
        sizes = [0 if out else count for (_, count), out in zip(media, out_of_media, strict=True)]

        def encode(some: list[int]) -> list[VisualTokens]:
            parts = inputs["pixel_values"].split(sizes)
            tiles = inputs["pixel_values"] if len(some) == len(media) else torch.cat([parts[n] for n in some])
            model, selector = self._encode(tiles)
            tokens = [sizes[n] * length for n in some]
            own = [None] * len(some) if selector is None else selector.split(tokens)
            return list(starmap(VisualTokens, zip(model.split(tokens), own, strict=True)))

        found = self.visual_tokens(of_media, out_of_media, encode)
        with_images = {row for row, of_video in owners if of_video < 0}  # whose tokens are not told by their ids
        known = zip(videos, keys, strict=True)
        of_rows: list[list[Hashable]] = [[] for _ in ids]
        for (row, _), key in known:
            of_rows[row].append(key)
        return [() if row in with_images else tuple(own) for row, own in enumerate(of_rows)], found

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Visual tokens ``(tokens, hidden)`` of some tiles, as the model and as the selector has them."""
        tokens, of_selector = [], []
        for chunk in pixels.split(self.tiles_per_chunk):
            with reading_inputs(self.model.model.multi_modal_projector) as read:
                tokens.append(self.model.get_image_features(pixel_values=chunk).pooler_output.flatten(0, 1))
            if self.selector is not None:
                of_selector.append(self.selector_tokens(read[0]).flatten(0, 1))
        return torch.cat(tokens), torch.cat(of_selector) if of_selector else None

    def _picture(self, columns: Tensor, rows: int, cols: int) -> Tensor:
        marks = (len(columns) - rows * cols) // 2  # one on either side, where they compete
        return columns[marks : len(columns) - marks].view(rows, cols)

    def _rows(
        self, inputs: Mapping[str, Any], ids_name: str, prefix: str, embed: Any, features: list[Tensor], marks: Any
    ) -> list[VideoPrompt]:
        ids = inputs[ids_name].cpu()
        embeds = embed(inputs[ids_name])
        if features:
            places = (ids == marks[0]).flatten().nonzero().squeeze(-1)
            found = torch.cat([each.to(embeds.device, embeds.dtype) for each in features])
            if len(places) != len(found):
                raise FlexSelectError(
                    f"the prompts have places for {len(places)} visual tokens; the pixels make {len(found)}"
                )
            embeds.flatten(0, 1).index_copy_(0, places.to(embeds.device), found)
        ones, none = torch.ones_like(ids), torch.full_like(ids, -1)
        real = inputs.get("attention_mask", ones) if ids_name == "input_ids" else ones
        video, frame = (inputs.get(f"{prefix}{name}", none).cpu() for name in ("video", "frame"))
        return [
            self._prompt(row[keep], each[keep.nonzero().squeeze(-1).to(each.device)], v[keep], f[keep], marks)
            for row, each, v, f, keep in zip(ids, embeds, video, frame, real.cpu().bool(), strict=True)
        ]

    def _prompt(
        self, ids: Tensor, embeds: Tensor, video: Tensor, frame: Tensor, marks: tuple[int, int, int]
    ) -> VideoPrompt:
        selectable = torch.isin(
            ids, torch.tensor(marks if self.image_marks == "compete" else marks[:1], device=ids.device)
        )
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

    @staticmethod
    def _shifted(prompt: VideoPrompt, scorer: VideoPrompt) -> VideoPrompt:
        """The prompt with its video's tokens taken for where the selector's prompt has them (see `shift_window`)."""
        columns, places = (p.visual.nonzero().squeeze(-1) for p in (prompt, scorer))
        if not len(columns):
            return prompt
        if prompt.num_videos > 1 or any(int(c[-1] - c[0]) + 1 != len(c) for c in (columns, places)):
            raise OptionError(
                "the published InternVL selector was trained on one video of bare frames; give frame_labels=bare"
            )
        if int(places[-1]) >= len(prompt):
            raise FlexSelectError("the prompt is too short for the published InternVL selector's window")
        video, frame = torch.full_like(prompt.video, -1), torch.full_like(prompt.frame, -1)
        video[places], frame[places] = prompt.video[columns], prompt.frame[columns]
        return replace(prompt, video=video, frame=frame, label=None)
