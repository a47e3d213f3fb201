"""The needle LLaVA-Video: built from nothing, and what it reads in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Tokenizer

from lmms_flexselect.families.chatml import chatml, marked_token_ids
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, pixel_values
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.needle.batches import TRAINING_UNITS, Batch, Chat, SelectorRecipe, shown_at_random, turns_of
from lmms_flexselect.needle.decoder import LAYERS, ROPE_THETA, answer_as_published, decoder_config
from lmms_flexselect.needle.tokenizer import MAX_POSITIONS, build_tokenizer
from lmms_flexselect.needle.videos import FRAME_SIZE, FRAMES_PER_UNIT, read_video

_MARK = "<image>"


def build_config(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> LlavaVideoConfig:
    """Decoder layers of width 128 over a tower of which two run; six tokens a frame."""
    tower = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": FRAME_SIZE,
        "patch_size": 14,
    }
    original = {
        **decoder_config(tokenizer, layers),
        "rope_theta": ROPE_THETA,
        "mm_vision_tower": "siglip-needle-patch14-56",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": tower["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "tokenizer_model_max_length": MAX_POSITIONS,
    }
    return LlavaVideoConfig.from_original(original, tower)


def build_model(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> LlavaVideoForCausalLM:
    """A model with random float32 weights that ends its answers as LLaVA-Video does."""
    model = LlavaVideoForCausalLM(build_config(tokenizer, layers))
    answer_as_published(model, tokenizer)
    return model


def chat_ids(chat: Chat, tokenizer: Qwen2Tokenizer) -> Tensor:
    """Token ids ``(tokens,)`` of a chat by LLaVA's `qwen_1_5` template; one `VIDEO_TOKEN` before the first question.

    An empty answer is one still to be given.
    """
    return torch.tensor(marked_token_ids(chatml(turns_of(chat, _MARK)), tokenizer, _MARK, VIDEO_TOKEN))


def shown_tokens(needles: Tensor) -> Tensor:
    """Which visual tokens a training batch shows: ``(batch, units, 2, 3)`` bool, for needles ``(batch, units, 4)``.

    A random share of each video's tokens is missing, as behind a selection, but never a needle's. The tower lets every
    token of a frame know of a needle in it, and without this any of the four becomes the one that is read, and kept.
    """
    return shown_at_random(F.pad(needles.unflatten(-1, (2, 2)), (0, 1)))  # a newline behind each row


class NeedleLlavaVideo:
    """A `lmms_flexselect.needle.batches.Trainee`."""

    likeness = "architecture, prompt and checkpoint layout of LLaVA-Video"

    # The reference layer is the one whose selection answered best at 512 units (layers 0 to 5: 1.00, .99, .93, .94,
    # .85, .86).
    preset: dict[str, Any] = {  # noqa: RUF012
        "reference_layer": 0,
        "token_budget": 96,
        "max_frames_per_set": TRAINING_UNITS,
        "dtype": "float32",
        "max_frames_num": 1024,
        "conv_template": "qwen_1_5",
    }
    selector_recipe = SelectorRecipe()

    def __init__(self, layers: int = LAYERS) -> None:
        self.tokenizer = self.processor = build_tokenizer()
        self.model = build_model(self.tokenizer, layers)

    def token_ids(self, chats: list[Chat], units: int) -> Tensor:
        """See `Trainee.token_ids`."""
        ids = torch.stack([chat_ids(chat, self.tokenizer) for chat in chats])
        rows, columns = self.model.model.grid
        sizes = torch.ones_like(ids[0])
        sizes[ids[0] == VIDEO_TOKEN] = units * rows * columns
        return ids.repeat_interleave(sizes, dim=1)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See `Trainee.inputs`."""
        frames = batch.frames.flatten(0, 1).permute(0, 2, 3, 1)
        features = self.model.model.encode_frames(pixel_values(frames, FRAME_SIZE))
        visual = batch.ids == VIDEO_TOKEN
        embeds = self.model.get_input_embeddings()(batch.ids.clamp(min=0))
        present = torch.ones_like(batch.ids).masked_scatter(visual, shown_tokens(batch.needles).long())
        return {
            "inputs_embeds": embeds.masked_scatter(visual[..., None], features),
            "attention_mask": present,
            "position_ids": present.cumsum(-1) - 1,
        }

    def answer(self, path: Path, question: str) -> str:
        """See `Trainee.answer`."""
        family = LlavaVideo(self.model)
        frames = torch.from_numpy(read_video(path)[::FRAMES_PER_UNIT])
        prompts = family.prompts({"input_ids": chat_ids([(question, "")], self.tokenizer)[None], "videos": [frames]})
        (new,) = family.generate(prompts, max_new_tokens=1)
        return str(self.tokenizer.decode(new))
