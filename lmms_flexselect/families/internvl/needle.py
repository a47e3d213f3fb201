"""The needle InternVL: built from nothing in transformers' layout, and what it reads in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.prompt import END, START, VIDEO_MARK, Tokens, spell_out
from lmms_flexselect.needle.batches import TRAINING_UNITS, Batch, Chat, SelectorRecipe, shown_at_random, turns_of
from lmms_flexselect.needle.decoder import INITIALIZER_RANGE, LAYERS, ROPE_THETA, answer_as_published, decoder_config
from lmms_flexselect.needle.tokenizer import build_tokenizer, chat_template
from lmms_flexselect.needle.videos import FRAME_SIZE, FRAMES_PER_UNIT, QUADRANTS, read_video

FRAME_LABELS = "bare"

# The form of InternVL's template: no system message of its own, images and videos on a line each.
CHAT_TEMPLATE = chat_template(video=VIDEO_MARK, image=IMAGE_TOKEN, own_line=True)


def build_processor() -> InternVLProcessor:
    """The processor, fixed to tiles and frames of 56x56 pixels: four visual tokens between two marks."""
    tokenizer = build_tokenizer(
        start_image_token=START, end_image_token=END, context_image_token=IMAGE_TOKEN, video_token=VIDEO_MARK
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    size = {"height": FRAME_SIZE, "width": FRAME_SIZE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=QUADRANTS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: InternVLProcessor, layers: int = LAYERS) -> InternVLForConditionalGeneration:
    """A model with random float32 weights: decoder layers of width 128 over an InternViT of two layers."""
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            **decoder_config(processor.tokenizer, layers),
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": FRAME_SIZE,
            "patch_size": 14,
            "attention_bias": True,
            "initializer_range": INITIALIZER_RANGE,
            # As in the other needle models' towers, whose layers are not scaled; at the usual 0.1 it learns as fast.
            "layer_scale_init_value": 1.0,
        },
        image_token_id=processor.image_token_id,
        image_seq_length=processor.image_seq_length,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    answer_as_published(model, processor.tokenizer)
    return model


class NeedleInternVL:
    """A `lmms_flexselect.needle.batches.Trainee`."""

    likeness = "architecture, processor and chat template of InternVL, frames unlabelled"

    # The reference layer is the one whose selection answered best at 512 units (layers 0 to 5: 1.00, .75, .86, .57,
    # .76, .51). A temporal unit is a second, two frames of which the middle one is read.
    preset: dict[str, Any] = {  # noqa: RUF012
        "reference_layer": 0,
        "token_budget": 96,
        "max_frames_per_set": TRAINING_UNITS,
        "dtype": "float32",
        "num_frames": None,
        "fps": 1.0,
        "frame_labels": FRAME_LABELS,
        "image_marks": "compete",
    }
    selector_recipe = SelectorRecipe()

    def __init__(self, layers: int = LAYERS) -> None:
        self.processor = build_processor()
        self.tokenizer = self.processor.tokenizer
        self.model = build_model(self.processor, layers)

    def token_ids(self, chats: list[Chat], units: int) -> Tensor:
        """See `Trainee.token_ids`; marks are spelled out too."""
        return torch.stack([self._tokens(chat, units).ids for chat in chats])

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See `Trainee.inputs`.

        A random share of each video's visual tokens and marks is missing (see `shown_at_random`).
        """
        frame = torch.tensor([self.processor.start_image_token_id, self.processor.end_image_token_id])
        visual = torch.isin(batch.ids, torch.cat([frame, torch.tensor([self.processor.image_token_id])]))
        shown = shown_at_random(F.pad(batch.needles, (1, 1)))  # a mark before and behind each frame
        present = torch.ones_like(batch.ids).masked_scatter(visual, shown.long())
        return {
            "input_ids": batch.ids,
            "pixel_values": self._pixels(batch.frames.flatten(0, 1)),
            "attention_mask": present,
            "position_ids": present.cumsum(-1) - 1,
        }

    def answer(self, path: Path, question: str) -> str:
        """See `Trainee.answer`."""
        start, end = self.processor.start_image_token_id, self.processor.end_image_token_id
        family = InternVL(self.model, (start, end), self.preset["image_marks"])
        frames = torch.from_numpy(read_video(path)[::FRAMES_PER_UNIT]).permute(0, 3, 1, 2)
        tokens = self._tokens([(question, "")], len(frames))
        inputs = {"input_ids": tokens.ids, "token_video": tokens.video, "token_frame": tokens.frame}
        batch = {name: row[None] for name, row in inputs.items()}
        (new,) = family.generate(family.prompts({**batch, "pixel_values": self._pixels(frames)}), max_new_tokens=1)
        return str(self.tokenizer.decode(new))

    def _tokens(self, chat: Chat, units: int) -> Tokens:
        """A chat spelled out for a video of `units` frames; an empty answer is one still to be given."""
        text = chatml(turns_of(chat, VIDEO_MARK), system=None)
        return spell_out(text, [], [units], self.tokenizer, self.processor.image_seq_length, FRAME_LABELS)

    def _pixels(self, frames: Tensor) -> Tensor:
        """``(frames, 3, 56, 56)`` in 0..255 as the tower reads them: the same shape, float32."""
        made = self.processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
        pixels: Tensor = made["pixel_values_videos"][0]
        return pixels
