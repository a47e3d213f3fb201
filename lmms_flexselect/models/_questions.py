"""Questions that hold what a model reads as the place of an image or a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_flexselect.errors import FlexSelectError


def check_text(text: str, placeholders: Sequence[str], where: str) -> None:
    """Raise `FlexSelectError` if a text has one of a model's placeholders in it; `where` says what text it is."""
    for placeholder in placeholders:
        if placeholder in text:
            raise FlexSelectError(
                f"{where} has {placeholder} in it, which this model reads as the place of an image or a video: "
                "write it otherwise, or leave the question out"
            )


def check_requests(requests: Sequence[Any], placeholders: Sequence[str]) -> None:
    """`check_text` for what requests ask, before the first is answered."""
    for request in requests:
        *_, doc_id, task, _ = request.args
        for text in request.args:
            if isinstance(text, str) and text != task:
                check_text(text, placeholders, f"{task}, document {doc_id}: the question")
