"""``reference_layer=auto:FILE``: the layer that ``lmms-flexselect recall`` recommends for a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import OptionError

KIND = "lmms-flexselect recall"
_PREFIX = "auto:"


@dataclass
class Recommendation:
    """The layers that a recall file recommends for one model.

    Attributes
    ----------
    file
        Where it was read.
    family
        By upstream's name of it.
    num_layers
        Of the decoder that was measured.
    of_selector
        Whether that was a FlexSelect-Lite selector's.
    recommended
        A layer for each reduction.
    """

    file: str
    family: str
    num_layers: int
    of_selector: bool
    recommended: dict[str, int]

    def layer(self, reduction: str) -> int:
        """The recommended one; any where there is no such reduction, which options refuse."""
        return self.recommended.get(reduction, next(iter(self.recommended.values())))

    def check(self, family: str, num_layers: int) -> None:
        """Raise `OptionError` unless the file is about a model of this family and depth."""
        if self.of_selector:
            raise OptionError(f"reference_layer=auto:{self.file}: was measured on a FlexSelect-Lite selector's layers")
        if (self.family, self.num_layers) != (family, num_layers):
            raise OptionError(
                f"reference_layer=auto:{self.file}: was measured on a {self.family} of {self.num_layers} layers; "
                f"this is a {family} of {num_layers}"
            )


def recall_file_of(value: Any) -> str | None:
    """The file that a ``reference_layer`` names; None for one that is a number or nothing."""
    return value.removeprefix(_PREFIX) if isinstance(value, str) and value.startswith(_PREFIX) else None


def read_recommendation(file: str) -> Recommendation:
    """What a recall file recommends.

    Raises
    ------
    OptionError
        If it cannot be read, or is of another kind.
    """
    result = read_result(file)
    try:
        recommended = {str(name): int(layer) for name, layer in result["recommended_layer"].items()}
        if not recommended or not all(0 <= layer < int(result["num_layers"]) for layer in recommended.values()):
            raise ValueError
        return Recommendation(
            file, str(result["family"]), int(result["num_layers"]), result["scored_by"] == "selector", recommended
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise OptionError(f"{file}: recommends no layer of its model; measure again") from None


def read_result(file: str) -> dict[str, Any]:
    """What ``lmms-flexselect recall`` wrote into a file.

    Raises
    ------
    OptionError
        If it cannot be read, or is another kind of file.
    """
    try:
        result = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError:
        result = None
    if not isinstance(result, dict) or result.get("kind") != KIND:
        raise OptionError(f"{file}: is no result of lmms-flexselect recall")
    return result
