"""The tokenizers of InternVL checkpoints, InternLM2's without its remote code, and where an answer ends."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Tokenizer, SentencePieceBackend

from lmms_flexselect import loading
from lmms_flexselect.families.chatml import END
from lmms_flexselect.families.internvl.config import ORIGINAL_TYPE, internvl_config


class InternLM2Tokenizer(SentencePieceBackend):
    """InternLM2's SentencePiece model, with ``<s>`` in front.

    SentencePiece itself tokenises each piece of text between special tokens, and puts a space in front of each where
    the model's file says so: a newline behind ``<|im_end|>`` is two tokens. The original does the same. transformers'
    Llama class makes a tokenizer of another kind of the file, and needs a protobuf that suits sentencepiece for it.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        pattern = "bos" if kwargs.get("add_bos_token", True) else "none"
        # "Legacy" is to leave the space in front to SentencePiece.
        super().__init__(**{**kwargs, "special_tokens_pattern": pattern, "legacy": True})

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Bytes that have no token of their own are put together; the base class would spell them out."""
        return self.sp_model.decode(tokens)


def load_tokenizer(pretrained: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Of a checkpoint folder or hub name, in its original or in transformers' layout.

    Raises
    ------
    OptionError
        If there is no such checkpoint, it is another family's, or its tokenizer cannot be read.
    """
    original = internvl_config(pretrained, revision)
    # Not AutoTokenizer for an original: it would ask for the remote code that its files name.
    kind: Any = AutoTokenizer
    if original["model_type"] == ORIGINAL_TYPE:
        decoder = (original.get("llm_config") or {}).get("architectures") or ()
        kind = InternLM2Tokenizer if "InternLM2ForCausalLM" in decoder else Qwen2Tokenizer
    return loading.load_tokenizer(kind, pretrained, revision=revision)


def stop_token_ids(tokenizer: Any, generation_config: GenerationConfig | None = None) -> list[int]:
    """Ids of the tokens that end an answer: ``<|im_end|>``, and what `generation_config` has beside it.

    A tokenizer's own `eos_token_id` is no good for this: it is ``</s>`` for an InternLM2 decoder, which never says it.
    """
    return stop_ids(tokenizer.get_vocab().get(END), generation_config)


def stop_ids(end: int | None, generation_config: GenerationConfig | None) -> list[int]:
    """`end` and the ids that `generation_config` ends an answer at, without repetition."""
    others = getattr(generation_config, "eos_token_id", None)
    others = others if isinstance(others, list) else [others]
    return [token for token in dict.fromkeys([end, *others]) if token is not None]
