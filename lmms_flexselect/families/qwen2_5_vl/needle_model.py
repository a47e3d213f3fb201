"""The needle Qwen2.5-VL: enough to live in a repository, made of the real transformers classes.

Everything a published checkpoint brings along is built here without a hub: config, tokenizer, chat template, image
and video processor, generation config.
"""

from __future__ import annotations

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lmms_flexselect.needle.decoder import INITIALIZER_RANGE, LAYERS, ROPE_THETA, answer_as_published, decoder_config
from lmms_flexselect.needle.tokenizer import TEXT_TOKENS, build_tokenizer
from lmms_flexselect.needle.videos import FRAME_SIZE

SPECIAL_TOKENS = (
    *TEXT_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

PIXELS = FRAME_SIZE * FRAME_SIZE

# The form of Qwen2.5-VL's template: a default system message, ChatML turns, every image and video between markers.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] in ('image', 'image_url') -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor, fixed to 56x56 pixels: four visual tokens an image or temporal unit."""
    tokenizer = build_tokenizer(SPECIAL_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=PIXELS, max_pixels=PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(min_pixels=PIXELS, max_pixels=PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> Qwen2_5_VLConfig:
    """Decoder layers of width 128 over a vision tower of two; with six 1.7 million parameters."""
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [4, 6, 6]}
    return Qwen2_5_VLConfig(
        text_config={**decoder_config(tokenizer, layers), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1],
            "tokens_per_second": 2,
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Qwen2Tokenizer, layers: int = LAYERS) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random float32 weights that ends its answers as Qwen2.5-VL does."""
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, layers))
    answer_as_published(model, tokenizer)
    return model
