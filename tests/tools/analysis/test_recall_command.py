"""``lmms-flexselect recall`` from its options to its files, stopped half-way and gone on with; and who reads them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from lmms_flexselect import cli
from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.llava_video.lmms_eval import LlavaVidFlexSelect
from lmms_flexselect.families.qwen2_5_vl.lmms_eval import Qwen2_5_VLFlexSelect
from lmms_flexselect.tools.analysis import recall_command


class Stopping:
    """Measures as the command does, but for a Ctrl-C at sample number `at`; `ids` are those it was asked for."""

    def __init__(self, own, at=None):
        self.own, self.at = own, at
        self.ids: list[str] = []

    def __call__(self, model, source, sample, layers):
        self.ids.append(sample.id)
        if len(self.ids) == self.at:
            raise KeyboardInterrupt
        return self.own(model, source, sample, layers)


def run(*words, model="llava_vid", args="pretrained=needle"):
    return cli.main(["recall", "--model", f"{model}_flexselect", "--model_args", args, *map(str, words)])


def complaint_in(capsys):
    """The one line of ours among what libraries print."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmms-flexselect: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("lmms-flexselect: ")


@pytest.fixture(scope="module")
def result(tmp_path_factory, hf_home):
    """Of twelve samples, two videos."""
    file = tmp_path_factory.mktemp("recall") / "layers.json"
    assert run("--samples", 12, "--output", file) == 0
    return file


def test_the_files(result, capsys):
    said = json.loads(result.read_text())
    begun, *samples = map(json.loads, result.with_suffix(".samples.jsonl").read_text().splitlines())
    assert said["about"] == begun
    assert (said["samples"], said["videos"], said["num_layers"]) == (12, 2, 6)
    assert (said["family"], said["scored_by"], said["needle_tokens"]) == ("llava_vid", "model", 1.0)
    assert said["recall_by_chance"] == pytest.approx(1 / 96)
    assert set(said["versions"]) == {"lmms-flexselect", "lmms-eval", "torch", "transformers"}
    assert begun["options"]["upstream"]["pretrained"].endswith("llava_vid")
    for reduction in ("max", "mean"):
        means = [entry[reduction]["mean"] for entry in said["layers"]]
        values = np.array([sample["recall"][reduction] for sample in samples])
        assert means == pytest.approx(values.mean(0).tolist())
        assert said["recommended_layer"][reduction] == int(np.argmax(means))
        for entry, column in zip(said["layers"], values.T, strict=True):
            # Two videos of equally many samples: the bounds are their means.
            bounds = sorted([column[:6].mean(), column[6:].mean()])
            assert [entry[reduction]["low"], entry[reduction]["high"]] == pytest.approx(bounds)
    assert means[0] > 0.9  # the model that it is: colours are found by their looks
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["recall", "--draw", str(result), str(result), "--output", str(result.with_name("two.png"))]) == 0
    assert result.with_name("two.png").stat().st_size > result.with_suffix(".png").stat().st_size


def test_a_stopped_run_goes_on(result, tmp_path, monkeypatch, capsys):
    file, own = tmp_path / "new" / "layers.json", recall_command.measure

    def measured(samples, at=None):
        stopping = Stopping(own, at)
        monkeypatch.setattr(recall_command, "measure", stopping)
        if at is None:
            assert run("--samples", samples, "--output", file) == 0
        else:
            with pytest.raises(KeyboardInterrupt):
                run("--samples", samples, "--output", file)
        return stopping.ids

    stopped = measured(12, at=3)
    assert not file.exists()
    with file.with_suffix(".samples.jsonl").open("a") as torn:
        torn.write(f'{{"id": "{stopped[-1]}", "rec')  # as a kill leaves it
    assert measured(12)[0] == stopped[-1]
    assert file.read_text() == result.read_text()
    assert "recommended layer: 0 (max)" in capsys.readouterr().out
    assert len(measured(13)) == 1  # more of the same
    assert json.loads(file.read_text())["samples"] == 13
    assert measured(6) == []
    assert json.loads(file.read_text())["samples"] == 6


@pytest.mark.parametrize(
    ("words", "args", "difference"),
    [
        (["--seed", 1], "pretrained=needle", "seed: 0, now 1"),
        (["--frames", 8], "pretrained=needle", "units: 16, now 8"),
        (["--layers", "0-2"], "pretrained=needle", "layers: [0, 1, 2, 3, 4, 5], now [0, 1, 2]"),
        ([], "pretrained=needle,selector=lite", "scored_by: model, now selector"),
    ],
)
def test_going_on_with_something_else_is_refused(result, capsys, words, args, difference):
    before = result.with_suffix(".samples.jsonl").read_text()
    assert run("--samples", 12, "--output", result, *words, args=args) == 1
    line = complaint_in(capsys)
    assert line.startswith(f"{result.with_suffix('.samples.jsonl')}: was begun with ")
    assert difference in line
    assert result.with_suffix(".samples.jsonl").read_text() == before


@pytest.mark.parametrize("family", ["llava_vid", "qwen2_5_vl", "internvl_hf"])
def test_pictures_in_videos(folders, tmp_path, family):
    words = ["--videos", folders / "videos", "--needles", folders / "needles", "--frames", 8, "--layers", "0,2-3"]
    assert run(*words, "--output", tmp_path / "v.json", model=family) == 0
    said = json.loads((tmp_path / "v.json").read_text())
    assert (said["samples"], said["videos"]) == (6, 3)
    assert [entry["layer"] for entry in said["layers"]] == [0, 2, 3]
    # All that may be dropped of a frame: newlines and marks too.
    assert said["needle_tokens"] == {"llava_vid": 6, "qwen2_5_vl": 4, "internvl_hf": 6}[family]
    assert said["recall_by_chance"] == pytest.approx(1 / 8)
    assert said["recommended_layer"]["max"] in (0, 2, 3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--layers", "0-6"], "layers=0-6: this model has layers 0 to 5"),
        (["--layers", "first"], "layers=first: must be all, or numbers and ranges as in 0,4,8-12"),
        (["--layers", "3-1"], "layers=3-1: this model has layers 0 to 5"),
        (["--samples", 0], "samples=0: must be a whole number of at least 1"),
        (["--frames", 0], "frames=0: must be a whole number of at least 1"),
        (["--seed", -1], "seed=-1: must be a whole number of at least 0"),
        (["--videos", "v"], "videos=v: give --needles too, or neither for our needle videos"),
        (["--output", "."], "output=.: is a folder; give a file"),
        (["--output", "layers.png"], "output=layers.png: must end in .json"),
        (["--output", f"{__file__}/layers.json"], f"{__file__}/layers.samples.jsonl: could not be written ("),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, capsys, words, complaint):
    monkeypatch.chdir(tmp_path)
    assert run("--samples", 6, *words) == 1
    assert complaint_in(capsys).startswith(complaint)
    assert not os.listdir(tmp_path)


def test_a_wrong_model_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(model="llava") == 1
    complaint = complaint_in(capsys)
    assert complaint.startswith("model=llava_flexselect: must be one of ")
    assert {"qwen2_5_vl_flexselect", "llava_vid_flexselect"} <= set(complaint.replace(",", "").split())
    assert run(args="pretrained") == 1
    assert complaint_in(capsys) == "model_args=pretrained: must be name=value,name=value"


def options_with(file, model=LlavaVidFlexSelect, **more):
    plugin = model.__new__(model)
    plugin._resolve({"pretrained": "needle", "reference_layer": f"auto:{file}", **more})
    return plugin.options


def changed(result, tmp_path, **words):
    file = tmp_path / "changed.json"
    file.write_text(json.dumps({**json.loads(result.read_text()), **words}))
    return file


def test_the_recommended_layer_is_read(result, tmp_path):
    file = changed(result, tmp_path, recommended_layer={"max": 4, "mean": 2})
    assert options_with(file).reference_layer == 4
    assert options_with(file, reduction="mean").reference_layer == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"num_layers": 28}, "was measured on a llava_vid of 28 layers; this is a llava_vid of 6$"),
        ({"family": "internvl_hf"}, "was measured on a internvl_hf of 6 layers; this is a llava_vid of 6$"),
        ({"scored_by": "selector"}, "was measured on a FlexSelect-Lite selector's layers$"),
        ({"recommended_layer": {"max": 6}}, "recommends no layer of its model; measure again$"),
        ({"recommended_layer": None}, "recommends no layer of its model; measure again$"),
        ({"kind": "scores"}, "is no result of lmms-flexselect recall$"),
    ],
)
def test_a_file_about_something_else_is_refused(result, tmp_path, words, complaint):
    with pytest.raises(OptionError, match=complaint):
        options_with(changed(result, tmp_path, **words))


def test_no_such_file_and_another_family(result, tmp_path):
    with pytest.raises(OptionError, match=r"gone\.json: cannot be read \(No such file or directory\)$"):
        options_with(tmp_path / "gone.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(OptionError, match=r"text\.json: is no result of lmms-flexselect recall$"):
        options_with(tmp_path / "text.json")
    with pytest.raises(OptionError, match=r"was measured on a llava_vid of 6 layers; this is a qwen2_5_vl of 6$"):
        options_with(result, Qwen2_5_VLFlexSelect)
