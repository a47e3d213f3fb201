"""The text decoder of all needle models: its sizes, and where its answers end."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmms_flexselect.needle.tokenizer import MAX_POSITIONS

ROPE_THETA = 10000.0
LAYERS = 6

# At the usual 0.02 so small a model never learns to match a colour's name with its pixels.
INITIALIZER_RANGE = 0.08


def decoder_config(tokenizer: PreTrainedTokenizerBase, layers: int) -> dict[str, Any]:
    """Layers of width 128 under tied embeddings, as a text configuration has them; without its rotary part."""
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
    }


def answer_as_published(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model answer greedily, and end its answers as models that speak ChatML do."""
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    settings = model.generation_config
    settings.do_sample = False
    settings.bos_token_id = pad
    settings.eos_token_id = [end, pad]
    settings.pad_token_id = pad
