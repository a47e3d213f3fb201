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
class Measured:
    """What a recall file says of one model.

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


def measured_in(value: Any) -> str | None:
    """The file that a ``reference_layer`` names; None for one that is a number or nothing."""
    return value.removeprefix(_PREFIX) if isinstance(value, str) and value.startswith(_PREFIX) else None


def read_measured(file: str) -> Measured:
    """What a recall file says.

    Raises
    ------
    OptionError
        If it cannot be read, or is of another kind.
    """
    said = read_result(file)
    try:
        recommended = {str(name): int(layer) for name, layer in said["recommended_layer"].items()}
        if not recommended or not all(0 <= layer < int(said["num_layers"]) for layer in recommended.values()):
            raise ValueError
        return Measured(
            file, str(said["family"]), int(said["num_layers"]), said["scored_by"] == "selector", recommended
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
        said = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError:
        said = None
    if not isinstance(said, dict) or said.get("kind") != KIND:
        raise OptionError(f"{file}: is no result of lmms-flexselect recall")
    return said
