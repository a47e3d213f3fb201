"""``lmms-flexselect train`` on files as LLaVA-Video-178K has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lmms_flexselect import cli, run_configs
from lmms_flexselect.lite.checkpoint import load_selector, read_selector_config
from lmms_flexselect.lite.networks import Tower
from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.selectors import DECODER
from lmms_flexselect.training import command
from lmms_flexselect.training.command import SelectorOptions, run
from lmms_flexselect.training.fit import training_arguments
from tests.support.trained import SMALL

LLAVA = Tower("llava_vid", 96, {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2})


@pytest.fixture
def options(data_set, tmp_path):
    """What every run here is given."""
    return {
        "family": "llava_vid",
        "pretrained": str(CHECKPOINTS / "llava_vid"),
        "data": str(data_set / "needles_oe_qa.json"),
        "videos": str(data_set / "videos"),
        "output_dir": str(tmp_path / "out"),
        "teacher_dtype": "float32",
        "frames": 8,
        "held_out": 4,
        "max_steps": 3,
        "save_steps": 2,
        "eval_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **SMALL,
    }


def as_words(options):
    words = ["train"]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.mark.parametrize("family", ["llava_vid", "qwen2_5_vl", "internvl_hf"])
def test_a_run_by_file_and_options(options, tmp_path, capsys, family):
    options |= {"family": family, "pretrained": str(CHECKPOINTS / family)}
    file = tmp_path / "run.yaml"
    steps = options.pop("max_steps")
    file.write_text(yaml.safe_dump({**options, "max_steps": 99}))
    assert cli.main(["train", str(file), "--max_steps", str(steps)]) == 0
    printed = capsys.readouterr().out
    assert "eval_rank_correlation=" in printed
    assert "eval_examples=8.0000" in printed
    out = tmp_path / "out"
    state = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    config = read_selector_config(str(out))
    own = config.raw["flexselect"]
    assert own["teacher"]["pretrained"] == str(CHECKPOINTS / family)
    assert own["teacher"]["frames"] == 8
    load_selector(str(out), tower_of(own), torch.float32)


def tower_of(own):
    return Tower(own["family"], own["width"], own["reading"])


def test_a_selector_started_from_a_decoder_takes_its_first_layers(options, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    vocabulary = json.loads((CHECKPOINTS / "llava_vid" / "config.json").read_text())["vocab_size"]
    decoder = Qwen2ForCausalLM(Qwen2Config(**{**SMALL, **DECODER, "num_hidden_layers": 3, "vocab_size": vocabulary}))
    decoder.save_pretrained(tmp_path / "small")
    own = {n: v for n, v in options.items() if n not in SMALL} | {"learning_rate": 0.0, "max_steps": 1}
    words = {**own, "init": str(tmp_path / "small"), "num_hidden_layers": 2}
    assert cli.main(as_words(words)) == 0
    selector = load_selector(str(tmp_path / "out"), LLAVA, torch.float32)
    assert len(selector.layers) == 2
    for name, weight in selector.state_dict().items():
        if name.startswith(("embed_tokens", "layers")):
            assert torch.equal(weight, decoder.model.state_dict()[name].bfloat16().float()), name


def test_bad_videos_are_skipped_counted_and_listed(options, data_set, tmp_path):
    rows = json.loads((data_set / "needles_oe_qa.json").read_text())
    cut = data_set / "videos" / "cut.mp4"
    cut.write_bytes((data_set / "videos" / "0.mp4").read_bytes()[:900])
    rows += [{**rows[0], "id": "cut", "video": "cut.mp4"}, {**rows[0], "id": "gone", "video": "gone.mp4"}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    given = {**options, "data": str(tmp_path / "data.json"), "num_train_epochs": 1, "max_steps": -1}
    output_dir = given.pop("output_dir")
    own = {name: given.pop(name) for name in list(given) if name in SelectorOptions.__dataclass_fields__}
    metrics = run(SelectorOptions(**own), output_dir, **given)
    assert metrics["eval_examples"] >= 2
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {line["video"] for line in skipped} == {str(cut)}
    assert all(line["error"].startswith(f"{cut}: ") for line in skipped)


def test_no_video_that_can_be_read_is_an_error(options, data_set, tmp_path, capsys):
    rows = json.loads((data_set / "needles_oe_qa.json").read_text())[:12]
    for number in range(6):
        (tmp_path / f"{number}.mp4").write_bytes((data_set / "videos" / f"{number}.mp4").read_bytes()[:900])
    (tmp_path / "data.json").write_text(json.dumps(rows))
    given = {**options, "data": str(tmp_path / "data.json"), "videos": str(tmp_path)}
    assert cli.main(as_words(given)) == 1
    skipped = tmp_path / "out" / "skipped.jsonl"
    message = f"lmms-flexselect: none of 4 videos can be read; see {skipped}"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert len(skipped.read_text().splitlines()) == 4


def test_two_processes_learn_what_one_does(options, tmp_path):
    """The same four samples a step, by two processes and by one: the same weights, and each file written once."""
    words = {**options, "max_steps": 4, "save_steps": 2, "score_cache": str(tmp_path / "scores")}
    one = [*as_words({**words, "per_device_train_batch_size": 4, "output_dir": str(tmp_path / "one")})]
    two = [*as_words({**words, "per_device_train_batch_size": 2, "output_dir": str(tmp_path / "two")})]
    assert cli.main(one) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launch, "-m", "lmms_flexselect.cli", *two],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("eval_loss=") == 1
    for part in ("checkpoint-2", "checkpoint-4", ""):
        mine, theirs = (load_file(tmp_path / n / part / "model.safetensors") for n in ("one", "two"))
        for name, weight in mine.items():
            torch.testing.assert_close(theirs[name], weight, msg=f"{part} {name}")
    assert (tmp_path / "two" / "checkpoint-4" / "rng_state_1.pth").is_file()


def test_the_answer_belongs_to_the_query_unless_told_otherwise(options, tmp_path, monkeypatch):
    from lmms_flexselect.families.llava_video.reader import LlavaVideoReader

    asked = []
    own = LlavaVideoReader.read
    monkeypatch.setattr(LlavaVideoReader, "read", lambda *a: asked.append(a[2:]) or own(*a))  # type: ignore[func-returns-value]
    cli.main(as_words({**options, "max_steps": 1}))
    assert all(answer for _, answer in asked)
    asked.clear()
    cli.main(as_words({**options, "output_dir": str(tmp_path / "other"), "query": "question", "max_steps": 1}))
    assert asked
    assert not any(answer for _, answer in asked)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"family": "gpt"}, "family=gpt: must be one of internvl_hf, llava_vid, qwen2_5_vl"),
        ({"pretrained": "/nowhere"}, "pretrained=/nowhere: no checkpoint could be read there ("),
        ({"loss": "kendall"}, "loss=kendall: must be one of spearman, pairwise, l1, spearman_l2"),
        ({"query": "answer"}, "query=answer: must be one of question_answer, question"),
        ({"reference_layer": 6}, "reference_layer=6: this model has layers 0 to 5"),
        ({"kinds": ["caption"]}, ""),
        ({"share": 2.0}, "share=2.0"),
        ({"data": "/nowhere.json"}, "/nowhere.json"),
        ({"init": "/nowhere", "hidden_size": 32}, "init=/nowhere: no checkpoint could be read there ("),
        ({"init": str(CHECKPOINTS / "llava_vid"), "hidden_size": 32}, "hidden_size=32: goes with random weights, not"),
        ({"frames": 0}, "frames=0: must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(options, capsys, changed, says):
    assert cli.main(as_words({**options, **changed})) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmms-flexselect: ")]
    assert says in line


def test_an_unknown_option_of_a_file_is_named(options, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**options, "learning_rat": 1}))
    assert cli.main(["train", str(tmp_path / "run.yaml")]) == 1
    assert "unknown option learning_rat" in capsys.readouterr().err


CONFIGS = Path(run_configs.__file__).parent / "train"
BASES = ["llava_video_7b", "qwen2_5_vl_7b", "internvl2_5_8b"]
OWN: dict[str, Any] = {"family": "llava_vid", "pretrained": "p", "data": "d", "videos": "v"}
CPU = {"bf16": False, "use_cpu": True}


@pytest.mark.parametrize("change", [None, *sorted({p.stem for p in CONFIGS.glob("*.yaml")} - set(BASES))])
@pytest.mark.parametrize("base", BASES)
def test_the_shipped_configurations_are_options(monkeypatch, base, change):
    asked: dict[str, Any] = {}

    def record(options, output_dir, **training):
        asked.update(vars(options), **training)
        return {}

    monkeypatch.setattr(command, "run", record)
    files = [str(CONFIGS / f"{base}.yaml"), *([] if change is None else [str(CONFIGS / f"{change}.yaml")])]
    assert cli.main(["train", *files, "--data", "d.json", "--videos", "v", "--output_dir", "o"]) == 0
    wanted = {name: value for file in files for name, value in yaml.safe_load(Path(file).read_text()).items()}
    assert {name: asked[name] for name in wanted} == wanted
    training_arguments("o", **{name: asked[name] for name in asked if name not in vars(SelectorOptions(**OWN))} | CPU)
