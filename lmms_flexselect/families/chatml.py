"""ChatML, the chat form that most families' decoders were tuned with, with marks where videos belong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SYSTEM = "You are a helpful assistant."
END = "<|im_end|>"


def chatml(turns: Iterable[tuple[str, str | None]], system: str | None = SYSTEM) -> str:
    """A chat as one text.

    Parameters
    ----------
    turns
        Role (``"user"``, ``"assistant"``) and text of each; None where the model is to go on.
    system
        Text of the turn before them; None for no such turn.
    """
    before = [] if system is None else [("system", system)]
    opened = [(role, "" if text is None else f"{text}{END}\n") for role, text in [*before, *turns]]
    return "".join(f"<|im_start|>{role}\n{text}" for role, text in opened)


def marked_token_ids(text: str, tokenizer: Any, mark: str, token: int) -> list[int]:
    """Token ids of a text, with the id `token` wherever it says `mark`; the pieces between are tokenised apart."""
    first, *others = (list(tokenizer(piece).input_ids) for piece in text.split(mark))
    return [*first, *(token_id for piece in others for token_id in (token, *piece))]
