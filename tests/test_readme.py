"""The README's example runs as it stands, and its option table names the options there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmms_flexselect.families.spec import families, load
from lmms_flexselect.needle.benchmark import documents

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize(("number", "kept"), enumerate(["kept 64 of 256 tokens", "kept 96 of 384 tokens"]))
def test_the_python_examples_find_the_needle(capsys, number, kept):
    examples = re.findall(r"<!-- run by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    exec(examples[number], {})
    printed = capsys.readouterr().out
    assert kept in printed
    assert printed.split()[-1] == documents(units=64, videos=1)[0]["shape"]


def test_every_option_is_in_the_readme():
    names = set().union(*(load(family.options).names() for family in families().values()))
    missing = [name for name in names if f"`{name}`" not in README and f"`{name}=" not in README]
    assert missing == []


def test_both_commands_are_there():
    assert "make demo" in README
    assert "make test" in README
