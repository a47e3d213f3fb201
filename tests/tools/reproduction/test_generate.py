"""The files of run_configs are what the table makes; their launch lines have only options that there are."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from lmms_eval import __main__ as lmms_eval_command
from lmms_eval.utils import simple_parse_args_string
from transformers import TrainingArguments

from lmms_flexselect.tools.reproduction.generate import FOLDERS, main, render, write
from lmms_flexselect.tools.reproduction.rows import runs
from lmms_flexselect.training.command import SelectorOptions

CONFIGS = Path(__file__).parents[3] / "run_configs"
RUNS = {run.path: run for run in runs()}
SCRIPTS = sorted((CONFIGS / "slurm").glob("*.sbatch"))


def files(folder: Path) -> dict[str, str]:
    found = [path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_the_committed_files_are_what_is_generated(tmp_path):
    write(tmp_path)
    assert files(CONFIGS) == files(tmp_path)
    assert len(files(tmp_path)) == len(RUNS) == len(runs())


def test_files_of_no_run_are_removed_and_nothing_else(tmp_path, capsys):
    stale, own = tmp_path / "paper" / "old.yaml", tmp_path / "train" / "mine.yaml"
    for path in (stale, own):
        path.parent.mkdir(parents=True)
        path.write_text("model: x\n")
    assert main(["--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{len(RUNS)} files in {tmp_path}\n"
    assert not stale.exists()
    assert own.exists()


@pytest.mark.parametrize("path", RUNS)
def test_a_file_says_what_the_run_is(path):
    run, contents = RUNS[path], yaml.safe_load(render(RUNS[path]))
    said = simple_parse_args_string(contents.pop("model_args"))
    assert said == dict(run.arguments)
    assert list(said) == list(run.arguments)
    assert contents == {
        "model": run.model,
        "tasks": ",".join(run.tasks),
        "batch_size": 1,
        "log_samples": True,
        "output_path": f"results/{path.removesuffix('.yaml')}",
    }
    assert not [line for line in render(run).splitlines() if len(line) > 120]


def options(text: str, command: str) -> set[str]:
    """The --options behind a command's name, up to the end of its (perhaps continued) line or the next command."""
    found = re.findall(rf"{command}((?:\\\n|[^\n])*)", text)
    assert found
    return {option for line in found for option in re.findall(r"(?<=\s)--?[a-z_]+", line)}


def known(parser) -> set[str]:
    return {word for action in parser._actions for word in action.option_strings}


@pytest.mark.parametrize("source", [*RUNS, *SCRIPTS], ids=str)
def test_launch_lines_have_options_that_there_are(source, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lmms-eval"])
    lmms_eval = known(lmms_eval_command.parse_eval_args()[0])
    text = render(RUNS[source]) if source in RUNS else source.read_text()
    text = re.sub(r"(?m)^# ?", "", text) if source in RUNS else text
    if (source in RUNS and not RUNS[source].fills_a_node) or "copy_a_gpu" in str(source):
        launched = options(text, "accelerate launch")
        assert {"--num_processes", "--multi_gpu", "--num_machines", "--machine_rank", "--main_process_ip"} <= launched
        assert launched <= known(launch_command_parser()) | lmms_eval | {"-m"}
        assert "--config" in options(text, "-m lmms_eval") <= lmms_eval
    else:
        assert "--config" in options(text, "lmms-eval") <= lmms_eval
        assert "device_map=auto" in text or source in SCRIPTS
    if source in RUNS and RUNS[source].train:
        trained = options(text, "lmms-flexselect train")
        fields = [*dataclasses.fields(SelectorOptions), *dataclasses.fields(TrainingArguments)]
        assert trained <= {f"--{field.name}" for field in fields}
        assert f"--output_dir {RUNS[source].arguments['selector_path']}\n" in text
        assert all((CONFIGS / "train" / f"{name}.yaml").is_file() for name in RUNS[source].train)
