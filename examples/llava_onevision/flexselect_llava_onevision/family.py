"""From what the processor returns to `VideoPrompt`s; answers come from `Family.generate`."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.families.family import Family, VisualTokens, keys_and_omissions
from lmms_flexselect.method.prompt import VideoPrompt, consecutive

FRAMES_AT_ONCE = 32


def side_of(config: Any) -> int:
    """Visual tokens along one side of a frame: patches, pooled two by two."""
    return -(-(config.vision_config.image_size // config.vision_config.patch_size) // 2)


@dataclass
class LlavaOnevision(Family):
    """Reads a `LlavaOnevisionForConditionalGeneration`."""

    model: Any
    name: ClassVar[str] = "llava_onevision"

    @torch.no_grad()
    def prompts(self, inputs: Mapping[str, Any]) -> list[VideoPrompt]:
        """One unpadded prompt a row; ``pixel_values_videos`` is ``(videos, frames, 3, size, size)``."""
        ids, pixels = inputs["input_ids"], inputs.get("pixel_values_videos", ())
        keys, omitted = keys_and_omissions(inputs, len(pixels))
        videos = self.visual_tokens(keys, omitted, lambda some: [self._encode(pixels[n]) for n in some])
        embeds, waiting = self.model.get_input_embeddings()(ids), iter(zip(keys, videos, strict=True))
        real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        rows = zip(ids, embeds, real, strict=True)
        return [self._prompt(row[keep].cpu(), embed[keep.to(embed.device)], waiting) for row, embed, keep in rows]

    def _encode(self, pixels: Tensor) -> VisualTokens:
        """``(frames * side², hidden)``, and the newline that ends a video."""
        model, parts = self.model.model, []
        for some in pixels.to(self.model.dtype).split(FRAMES_AT_ONCE):
            seen = model.vision_tower(some, output_hidden_states=True).hidden_states
            parts.append(model.apply_pooling(model.multi_modal_projector(seen[model.config.vision_feature_layer])))
        tokens = torch.cat(parts).flatten(0, 1)
        return VisualTokens(torch.cat([tokens, model.image_newline[None].to(tokens)]), None)

    def _prompt(self, ids: Tensor, embeds: Tensor, waiting: Iterator[tuple[Hashable, VisualTokens]]) -> VideoPrompt:
        video, frame, label = (torch.full_like(ids, -1) for _ in range(3))
        places = (ids == self.model.config.video_token_id).nonzero().squeeze(-1)
        side, grids, keys = side_of(self.model.config), list[tuple[int, int, int]](), list[Hashable]()
        while len(places):
            key, tokens = next(waiting)
            own, places = places[: len(tokens.model)], places[len(tokens.model) :]
            embeds[own.to(embeds.device)] = tokens.model.to(embeds)
            frames = len(own) // side**2
            frame[own[:-1]] = torch.arange(frames).repeat_interleave(side**2)
            video[own[:-1]] = label[own[-1]] = len(grids)
            frame[own[-1]] = frames - 1  # the newline is text: it goes with the last frame, and always stays
            grids.append((frames, side, side))
            keys.append(key)
        positions = consecutive(torch.ones_like(ids))
        return VideoPrompt(
            ids, embeds, positions, video, frame, grids, consecutive, True, label, video_keys=tuple(keys)
        )
