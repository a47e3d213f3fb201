import sys
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_flexselect.needle import train
from lmms_flexselect.needle.benchmark import documents


def test_the_command_writes_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train, "documents", lambda units: documents(units, videos=1))
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "out"), "--steps", "2", "--seed", "5"])
    train.main()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.flexselect == train.PRESET
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.pad_token == "<|endoftext|>"
    assert "OUT --steps 2 --seed 5" in (tmp_path / "out" / "README.md").read_text()


def test_the_learning_rate_warms_up_and_cools_down() -> None:
    rates = [train.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < rates[100] < max(rates) <= train.PEAK_LEARNING_RATE
    assert rates[-1] < 0.06 * train.PEAK_LEARNING_RATE
