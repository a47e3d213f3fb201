"""Tokenizers of small InternVL2.5 checkpoints, in the files that the original ones have."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

import sentencepiece

from lmms_flexselect.needle.tokenizer import TEXT_TOKENS, build_tokenizer

_CORPUS = (
    "Answer with the option's letter from the given choices directly.",
    "system\n",
    "user\n",
    "assistant\n",
    "你是书生·万象",
)
_ADDED = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
# Entries of InternLM2's vocabulary that were kept free for later, and what they are called in InternVL's files.
_RENAMED = {"[UNUSED_TOKEN_145]": "<|im_end|>", "[UNUSED_TOKEN_146]": "<|im_start|>"}


@cache
def sentencepiece_model(dummy_prefix: bool = True) -> bytes:
    """A ``tokenizer.model`` like InternLM2's: byte pairs, any byte as a last resort, some entries kept free."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(_RENAMED),
        minloglevel=2,
    )
    return written.getvalue()


@cache
def vocabulary(llm: str) -> tuple[int, dict[str, int]]:
    """Of ``"internlm2"`` or ``"qwen2"``: entries in all, and ids of those that are named beside the vocabulary."""
    if llm == "qwen2":
        tokenizer = build_tokenizer((*TEXT_TOKENS, *_ADDED))
        return len(tokenizer) + 5, tokenizer.get_added_vocab()  # the published ones are padded too
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    size = pieces.get_piece_size()
    added = {new: pieces.piece_to_id(old) for old, new in _RENAMED.items()}
    return size + len(_ADDED), added | {token: size + number for number, token in enumerate(_ADDED)}


def tokenizer_files(llm: str) -> dict[str, Any]:
    """Contents of the files by their names: bytes, or what is to be written as JSON."""
    _, added = vocabulary(llm)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = {"internlm2": {"<unk>": 0, "<s>": 1, "</s>": 2}, "qwen2": {}}[llm]
    config: dict[str, Any] = {
        "added_tokens_decoder": {
            str(number): {"content": token, **plain} for token, number in sorted({**special, **added}.items())
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *_ADDED],
        "chat_template": "{{ bos_token }}",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": {"internlm2": "InternLM2Tokenizer", "qwen2": "Qwen2Tokenizer"}[llm],
    }
    if llm == "internlm2":
        config |= {"auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}}
        config |= {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
        appended = {token: number for token, number in added.items() if token in _ADDED}
        return {
            "added_tokens.json": appended,
            "generation_config.json": {
                "_from_model_config": True,
                "eos_token_id": [added["<|im_end|>"], added["<|im_start|>"]],
                "transformers_version": "4.37.2",
            },
            "tokenizer.model": sentencepiece_model(),
            "tokenizer_config.json": config,
        }
    config |= {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    learned = json.loads(build_tokenizer().backend_tokenizer.to_str())["model"]
    merges = "".join(f"{' '.join(pair)}\n" for pair in learned["merges"])
    return {
        "added_tokens.json": added,
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        "tokenizer_config.json": config,
        "vocab.json": learned["vocab"],
    }
