"""What a needle's colour is called in its question: by its own name, or by a field of a chart.

A colour's own name is matched with its pixels by a decoder's first layer. The chart makes a needle question that needs
depth: "What shape is the 5C glyph?", where 5C is a field of a chart of eight columns and eight rows that a model only
knows from training. Every digit and every letter stands beside each of the eight colours once, so neither says
anything of the colour, and no layer finds the glyph before another one has put the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lmms_flexselect.needle.videos import COLOURS

COLUMNS = "12345678"
ROWS = "ABCDEFGH"

Naming = Callable[[str, np.random.Generator], str]
"""From a colour to what it is called; one of several names is drawn."""


def by_colour(colour: str, rng: np.random.Generator) -> str:
    """Its own name; nothing is drawn."""
    return colour


def by_chart(colour: str, rng: np.random.Generator) -> str:
    """One of the eight fields of the chart that have it."""
    row = int(rng.integers(len(ROWS)))
    column = (list(COLOURS).index(colour) - row) % len(COLUMNS)
    return f"{COLUMNS[column]}{ROWS[row]}"


def field_colour(field: str) -> str:
    """The colour of a field: each row has the colours in their order, shifted by one against the row before."""
    column, row = field[0], field[1]
    return list(COLOURS)[(COLUMNS.index(column) + ROWS.index(row)) % len(COLOURS)]


NAMINGS: Mapping[str, Naming] = {"colour": by_colour, "chart": by_chart}
