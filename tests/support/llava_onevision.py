"""A tiny LLaVA-OneVision with random weights and a working processor: no hub, no files."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from lmms_flexselect.needle.tokenizer import TEXT_TOKENS, build_tokenizer, chat_template

SIZE, PATCH = 42, 14  # 3x3 patches, pooled to 2x2 visual tokens a frame


def write_checkpoint(folder: Path) -> Path:
    """Write it; returns the folder."""
    torch.manual_seed(5)
    tokenizer = build_tokenizer((*TEXT_TOKENS, "<image>", "<video>"))
    tokenizer.chat_template = chat_template("<video>", "<image>")
    image, video, end = tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<|im_end|>"])
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
            "eos_token_id": end,
        },
        image_token_id=image,
        video_token_id=video,
        image_grid_pinpoints=[[SIZE, SIZE], [SIZE, 2 * SIZE]],
        tie_word_embeddings=False,
    )
    LlavaOnevisionForConditionalGeneration(config).eval().save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIZE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    return folder
