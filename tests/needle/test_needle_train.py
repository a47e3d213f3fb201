import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer

from lmms_flexselect import needle
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.families.spec import families
from lmms_flexselect.needle import needle_families, train
from lmms_flexselect.needle.benchmark import documents


@pytest.mark.parametrize("family", needle_families())
def test_the_command_writes_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train, "documents", lambda units, naming: documents(units, videos=1, naming=naming))
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["train", out, "--family", family, "--steps", "2", "--seed", "5"])
    train.main()
    if family == "llava_vid":
        config = LlavaVideoConfig.from_checkpoint(out)
        model, report = LlavaVideoForCausalLM.from_pretrained(out, config=config, output_loading_info=True)
    else:
        model, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.flexselect == train.needle_class(family).preset
    assert model.generation_config.do_sample is False
    assert AutoTokenizer.from_pretrained(out).pad_token == "<|endoftext|>"
    assert f"OUT --family {family} --steps 2 --seed 5" in (tmp_path / "out" / "README.md").read_text()


def test_a_family_without_a_needle_model_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    known = families()
    other = replace(known["llava_vid"], name="other", needle=None)
    monkeypatch.setattr(needle, "families", lambda: {**known, "other": other})
    assert "other" not in needle_families()
    assert list(needle_families()) == [name for name, spec in known.items() if spec.needle]
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "out"), "--family", "other"])
    with pytest.raises(SystemExit):
        train.main()
    assert "invalid choice: 'other'" in capsys.readouterr().err


def test_the_learning_rate_warms_up_and_cools_down() -> None:
    rates = [train.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < rates[100] < max(rates) <= train.PEAK_LEARNING_RATE
    assert rates[-1] < 0.06 * train.PEAK_LEARNING_RATE
