"""Qwen3-VL: processor inputs to `VideoPrompt`s.

Three things set it apart from Qwen2.5-VL. In front of every temporal unit stands its time as text, between
``<|vision_start|>`` and ``<|vision_end|>`` its visual tokens, so that positions do not tell the time. The decoder's
first layers add features of the tower's intermediate layers to the visual tokens (DeepStack). And queries and keys are
normalised, which the scoring hook sees done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.families.family import VisualTokens, reading_inputs
from lmms_flexselect.families.mrope import VisionBlock
from lmms_flexselect.families.mrope_family import MropeFamily
from lmms_flexselect.lite.networks import Tower
from lmms_flexselect.method.prompt import VideoPrompt
from lmms_flexselect.runtime.memory import to_device

_TIMESTAMP = re.compile(r"<\d+\.\dseconds>$")  # without its blanks
_TIMESTAMP_TOKENS = 32  # at most; one of ten hours has twelve


@dataclass
class Qwen3_VL(MropeFamily):
    """Reads a `Qwen3VLForConditionalGeneration` or a `Qwen3VLMoeForConditionalGeneration`.

    A frame of a prompt is a temporal unit (a pair of frames). Its timestamp and its vision marks are its label: they
    stay in the prompt whatever is kept of the unit, and are left out of other frame sets' scoring prompts.

    Attributes
    ----------
    model, rope, patches_per_chunk
        See `MropeFamily`.
    tokenizer
        The checkpoint's; tells where a video's first timestamp begins.
    """

    tokenizer: Any
    name: ClassVar[str] = "qwen3_vl"
    units_apart: ClassVar[bool] = True

    @property
    def tower(self) -> Tower:
        """What a FlexSelect-Lite selector reads."""
        vision = self.model.config.vision_config
        return Tower(self.name, vision.hidden_size, {"spatial_merge_size": vision.spatial_merge_size})

    def _encode(self, kind: str, pixels: Tensor, grids: Sequence[Sequence[int]]) -> VisualTokens:
        encode = self.model.get_video_features if kind == "video" else self.model.get_image_features
        with reading_inputs(self.model.model.visual.merger) as read:
            found = encode(pixels, torch.tensor(grids, device=pixels.device))
        # One tensor a level, which later releases split by medium.
        levels = [each if isinstance(each, Tensor) else torch.cat(list(each)) for each in found.deepstack_features]
        selector = None if self.selector is None else self.selector_tokens(read[0])
        return VisualTokens(torch.cat(list(found.pooler_output)), selector, {"deepstack": torch.stack(levels, dim=1)})

    def _with_extras(self, prompt: VideoPrompt, extras: dict[str, Tensor]) -> VideoPrompt:
        if not extras:
            return prompt
        config = self.model.config
        visual = (prompt.input_ids == config.video_token_id) | (prompt.input_ids == config.image_token_id)
        return replace(prompt, extras={**extras, "visual": visual}, decoder_arguments=_deepstack_arguments)

    def _labels(self, ids: Tensor, video: Tensor, frame: Tensor, blocks: list[VisionBlock]) -> Tensor:
        label = torch.full_like(ids, -1)
        end = 0  # of the previous unit
        for block in (block for block in blocks if block.is_video):
            first, behind = int(block.columns[0]), int(block.columns[-1]) + 1
            start = end if block.unit else self._timestamp(ids[:first])
            for told in (slice(start, first), slice(behind, behind + 1)):
                label[told], frame[told] = block.video, block.unit
            end = behind + 1
        return label

    def _timestamp(self, before: Tensor) -> int:
        """Where the timestamp of a unit begins, given the ids in front of its visual tokens."""
        mark = len(before) - 1  # vision start
        for column in range(mark - 1, max(-1, mark - 1 - _TIMESTAMP_TOKENS), -1):
            words = re.sub(r"\s", "", self.tokenizer.decode(before[column:mark].tolist()))
            if found := _TIMESTAMP.search(words):
                # A first token that holds text in front of the timestamp, too, is text.
                return column if found.start() == 0 else column + 1
        return mark


def _deepstack_arguments(extras: Mapping[str, Tensor]) -> dict[str, Any]:
    """The text model's arguments: where the visual tokens are, and what each of its first layers adds to them.

    Parameters
    ----------
    extras
        ``visual`` ``(batch, tokens)`` bool on the CPU, ``deepstack`` ``(batch, tokens, levels, hidden)``.
    """
    visual, features = extras["visual"], extras["deepstack"]
    places = visual.flatten().nonzero().squeeze(-1)
    if not len(places):
        return {}
    levels = features.flatten(0, 1)[to_device(places, features.device)].unbind(1)
    return {"visual_pos_masks": to_device(visual, features.device), "deepstack_visual_embeds": list(levels)}
