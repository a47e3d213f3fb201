"""Options that InternVL alone has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmms_flexselect.families.internvl.family import IMAGE_MARKS
from lmms_flexselect.families.internvl.prompt import FRAME_LABELS, SYSTEM_MESSAGES
from lmms_flexselect.options import FlexSelectOptions


@dataclass
class Options(FlexSelectOptions):
    """`FlexSelectOptions`, and these.

    Attributes
    ----------
    frame_labels
        ``numbered`` puts each frame on a line ``Frame7: <img>…</img>``, as the models were trained and lmms-eval asks;
        ``bare`` puts nothing between frames, as the authors' implementation asks InternVL2.5.
    image_marks
        Whether ``<img>`` and ``</img>`` ``compete`` with visual tokens (the way of the authors' implementation) or
        ``stay``.
    system_message
        ``internvl2_5`` says what that model was trained to be told first; ``none`` says nothing.
    """

    CHOICES: ClassVar[Mapping[str, Sequence[str]]] = {
        **FlexSelectOptions.CHOICES,
        "frame_labels": FRAME_LABELS,
        "image_marks": IMAGE_MARKS,
        "system_message": tuple(SYSTEM_MESSAGES),
    }

    frame_labels: str = "numbered"
    image_marks: str = "compete"
    system_message: str = "none"
