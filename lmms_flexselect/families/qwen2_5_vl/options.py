"""Options that Qwen2.5-VL alone has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.mrope import ROPE_RULES
from lmms_flexselect.options import FlexSelectOptions


@dataclass
class Options(FlexSelectOptions):
    """`FlexSelectOptions`, and these.

    Attributes
    ----------
    rope
        ``published``: positions as the model was trained with; ``library``: as the installed transformers has them.
    seconds_per_unit
        Seconds per temporal unit in the answer's prompt; None takes the real sampling, 1.0 is the paper's runs.
    """

    CHOICES: ClassVar[Mapping[str, Sequence[str]]] = {**FlexSelectOptions.CHOICES, "rope": ROPE_RULES}
    NO_VALUE: ClassVar[Mapping[str, Sequence[str]]] = {
        **FlexSelectOptions.NO_VALUE,
        "seconds_per_unit": ("none", "sampled"),
    }

    rope: str = "published"
    seconds_per_unit: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds_per_unit is not None:
            if isinstance(self.seconds_per_unit, bool) or not isinstance(self.seconds_per_unit, (int, float)):
                raise OptionError(f"seconds_per_unit={self.seconds_per_unit}: must be sampled or a number of seconds")
            if not 0 < self.seconds_per_unit < float("inf"):
                raise OptionError(f"seconds_per_unit={self.seconds_per_unit}: must be greater than 0")
