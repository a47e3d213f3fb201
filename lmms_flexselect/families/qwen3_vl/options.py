"""Options that Qwen3-VL alone has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmms_flexselect.families.mrope import ROPE_RULES
from lmms_flexselect.options import FlexSelectOptions


@dataclass
class Options(FlexSelectOptions):
    """`FlexSelectOptions`, and these.

    Attributes
    ----------
    rope
        ``published``: positions as the model was trained with; ``library``: as the installed transformers has them.
    """

    CHOICES: ClassVar[Mapping[str, Sequence[str]]] = {**FlexSelectOptions.CHOICES, "rope": ROPE_RULES}

    rope: str = "published"
