"""The chart: what a field stands for, and that neither half of its name tells."""

from collections import Counter

import numpy as np
import pytest

from lmms_flexselect.needle.naming import COLUMNS, ROWS, by_chart, by_colour, field_colour
from lmms_flexselect.needle.videos import COLOURS


def test_neither_a_column_nor_a_row_says_anything_of_the_colour():
    every_colour_once = Counter(list(COLOURS))
    for column in COLUMNS:
        assert Counter(field_colour(column + row) for row in ROWS) == every_colour_once
    for row in ROWS:
        assert Counter(field_colour(column + row) for column in COLUMNS) == every_colour_once


def test_some_fields():
    """Counted by hand: the rows shift red, green, blue, yellow, magenta, cyan, white, orange."""
    assert {name: field_colour(name) for name in ("1A", "8A", "1B", "8B", "5C", "8H")} == {
        "1A": "red",
        "8A": "orange",
        "1B": "green",
        "8B": "red",
        "5C": "white",
        "8H": "white",
    }


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_called_by_each_of_its_fields(colour):
    rng = np.random.default_rng(0)
    drawn = Counter(by_chart(colour, rng) for _ in range(400))
    assert len(drawn) == 8
    assert {field_colour(field) for field in drawn} == {colour}
    assert min(drawn.values()) > 20


def test_a_colours_own_name_draws_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert by_colour("cyan", rng) == "cyan"
    assert rng.bit_generator.state == before
