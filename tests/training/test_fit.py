"""A run from its first step to a folder that is a ``selector_path``, and everything that can stop it."""

from __future__ import annotations

import errno
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.lite import writing
from lmms_flexselect.lite.checkpoint import load_selector, read_selector_config
from lmms_flexselect.training import losses
from lmms_flexselect.training.cache import ScoreCache
from lmms_flexselect.training.fit import fit, training_arguments
from lmms_flexselect.training.objective import RankSupervision
from lmms_flexselect.training.trainer import whole_checkpoints

ABOUT = {"pretrained": "needle"}
QUIET = {"disable_tqdm": True, "eval_strategy": "no", "learning_rate": 3e-3, "warmup_steps": 2, "use_cpu": True}


def train(trained, out, steps=6, examples=24, student=None, held_out=4, about=ABOUT, **arguments):
    own = {name: arguments.pop(name) for name in ("loss", "cache", "teacher") if name in arguments}
    arguments = {**QUIET, "max_steps": steps, "per_device_train_batch_size": 2, **arguments}
    student = trained.student() if student is None else student
    train_set = trained.examples(examples) if isinstance(examples, int) else examples
    return student, fit(
        student,
        own.pop("teacher", trained.teacher),
        train_set,
        trained.examples(held_out, seed=0) if isinstance(held_out, int) else held_out,
        training_arguments(out, **arguments),
        about=about,
        tokenizer=trained.reader.tokenizer,
        **own,
    )


def test_a_run_writes_a_selector_that_ranks_as_the_student_does(trained, tmp_path):
    student, metrics = train(trained, tmp_path, save_strategy="no")
    assert metrics["eval_examples"] == 4
    assert -1 <= metrics["eval_rank_correlation"] <= 1
    config = read_selector_config(str(tmp_path))
    assert config.trained_here
    assert config.raw["flexselect"]["teacher"] == {**ABOUT, "reference_layer": 1, "reduction": "max"}
    loaded = load_selector(str(tmp_path), trained.family.tower, torch.float32)
    for name, weight in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16().float()), name


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_a_student_learns_to_rank(llava, tmp_path, loss):
    _, untrained = train(llava, tmp_path / "none", steps=1, learning_rate=0.0, held_out=24, save_strategy="no")
    _, metrics = train(
        llava, tmp_path / loss, steps=40, examples=320, held_out=24, loss=loss, learning_rate=3e-3,
        per_device_train_batch_size=4, save_strategy="no",
    )  # fmt: skip
    assert metrics["eval_rank_correlation"] > untrained["eval_rank_correlation"] + 0.4
    assert metrics["eval_rank_correlation"] > 0.6


def test_the_log_tells_loss_correlation_and_overlap(llava, tmp_path):
    train(llava, tmp_path, logging_steps=2, save_steps=6)
    (folder,) = whole_checkpoints(tmp_path)
    lines = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all({"loss", "rank_correlation", "top_k_overlap", "learning_rate"} <= line.keys() for line in lines)


def test_the_metrics_are_means_over_the_held_out_examples(llava, tmp_path):
    """And the log's those of the training examples, of which there is one here."""
    student = llava.student()
    fixed = {"learning_rate": 0.0, "per_device_train_batch_size": 1, "logging_steps": 2, "save_steps": 2}
    _, metrics = train(llava, tmp_path, steps=2, examples=1, student=student, **fixed)
    module = RankSupervision(student, llava.teacher, losses.spearman_loss).eval()
    held_out = llava.examples(4, seed=0)
    (folder,) = whole_checkpoints(tmp_path)
    (line,) = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    with torch.no_grad():
        alone = [module([held_out[i]]) for i in range(4)]
        seen = module([llava.examples(1)[0]])
    for name in ("loss", "rank_correlation", "top_k_overlap"):
        assert metrics[f"eval_{name}"] == pytest.approx(sum(float(one[name]) for one in alone) / 4)
    for name in ("rank_correlation", "top_k_overlap"):
        assert line[name] == pytest.approx(float(seen[name]), abs=1e-4)


class Stop(Exception):
    """Stands for a kill."""


def killed_at(trained, step, batch=2):
    """The training examples of `trained`, of which asking for those of a late step ends everything."""

    class Killed(torch.utils.data.Dataset):
        own = trained.examples(24)
        asked = 0

        def __len__(self):
            return len(self.own)

        def __getitem__(self, index):
            Killed.asked += 1
            if Killed.asked > batch * step:
                raise Stop
            return self.own[index]

    return Killed()


def test_a_killed_run_goes_on_as_if_nothing_had_been(llava, tmp_path):
    whole, _ = train(llava, tmp_path / "whole", steps=8, save_steps=3)
    with pytest.raises(Stop):
        train(llava, tmp_path / "killed", steps=8, save_steps=3, examples=killed_at(llava, 5))
    assert [folder.name for folder in whole_checkpoints(tmp_path / "killed")] == ["checkpoint-3"]
    # A kill in the middle of writing leaves a folder without its mark.
    (tmp_path / "killed" / "checkpoint-6").mkdir()
    (tmp_path / "killed" / "checkpoint-6" / "model.safetensors").write_bytes(b"cut")
    resumed, _ = train(llava, tmp_path / "killed", steps=8, save_steps=3, student=llava.student(seed=99))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, msg=name)
    assert [folder.name for folder in whole_checkpoints(tmp_path / "killed")] == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_checkpoints_are_selectors_and_only_so_many_stay(llava, tmp_path):
    train(llava, tmp_path, steps=8, save_steps=2, save_total_limit=2)
    assert [folder.name for folder in whole_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    for folder in whole_checkpoints(tmp_path):
        load_selector(str(folder), llava.family.tower, torch.float32)


# What a disk that was really full made Python, safetensors and torch.save raise.
FULL = [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    (
        SafetensorError("I/O error: No space left on device (os error 28)"),
        "I/O error: No space left on device (os error 28)",
    ),
    (
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0\nframe 1"),
        "[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0",
    ),
]


@pytest.mark.parametrize(("full", "says"), FULL)
def test_a_full_disk_loses_nothing_that_was_saved(llava, tmp_path, monkeypatch, full, says):
    saved: list[Any] = []

    def fill_up(contents, path, **kwargs):
        saved.append(path)
        if len(saved) == 2:
            path.write_bytes(b"part of it")
            raise full
        save_file(contents, path, **kwargs)

    monkeypatch.setattr(writing, "save_file", fill_up)
    with pytest.raises(FlexSelectError) as caught:
        train(llava, tmp_path, save_steps=2, save_total_limit=1)
    assert re.fullmatch(
        re.escape(f"{tmp_path / 'checkpoint-4'}: could not be written ({says}; ")
        + r"[\d,]+ MiB are free there\); what was saved before is whole",
        str(caught.value),
    )
    assert [folder.name for folder in whole_checkpoints(tmp_path)] == ["checkpoint-2"]
    load_selector(str(tmp_path / "checkpoint-2"), llava.family.tower, torch.float32)
    monkeypatch.setattr(writing, "save_file", save_file)
    train(llava, tmp_path, save_steps=2, save_total_limit=1)
    assert [folder.name for folder in whole_checkpoints(tmp_path)] == ["checkpoint-6"]


def test_a_folder_begun_with_another_teacher_is_refused(llava, tmp_path):
    train(llava, tmp_path, steps=1)
    with pytest.raises(OptionError) as caught:
        train(llava, tmp_path, steps=2, about={"pretrained": "other"})
    assert str(caught.value) == (
        f"{tmp_path}: was begun with another teacher (pretrained: needle, now other); "
        "give another folder, or the same teacher"
    )


def test_checkpoints_of_another_program_are_left_alone(llava, tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(OptionError, match=r"holds the checkpoints of another program; give another folder$"):
        train(llava, tmp_path, steps=1)
    assert (tmp_path / "checkpoint-500").is_dir()


def test_a_cache_is_filled_once_and_used_again(llava, tmp_path, monkeypatch):
    about = {"pretrained": "needle", "layer": 1}
    first, _ = train(llava, tmp_path / "a", save_strategy="no", cache=ScoreCache(tmp_path / "scores", about))
    assert len(list((tmp_path / "scores").rglob("*.npy"))) == 12 + 4
    cached = ScoreCache(tmp_path / "scores", about)

    class Known(torch.utils.data.Dataset):
        def __init__(self, own):
            self.own = own

        def __len__(self):
            return len(self.own)

        def __getitem__(self, index):
            example = self.own[index]
            example.scores = cached.get(example.name)
            return example

    monkeypatch.setattr(type(llava.teacher), "scores", lambda *arguments: pytest.fail("the teacher was asked"))
    second, _ = train(
        llava, tmp_path / "b", save_strategy="no", examples=Known(llava.examples(24)),
        held_out=Known(llava.examples(4, seed=0)),
    )  # fmt: skip
    for name, weight in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], weight), name
    with pytest.raises(OptionError, match=r"was begun with another teacher \(layer: 1, now 2\)"):
        ScoreCache(tmp_path / "scores", {**about, "layer": 2})


def test_a_cut_off_score_file_is_computed_again(tmp_path):
    cache = ScoreCache(tmp_path, {})
    cache.put("one", torch.arange(5.0))
    assert torch.equal(cache.get("one"), torch.arange(5.0))
    assert cache.get("two") is None
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:-3])
    assert cache.get("one") is None
    path.write_bytes(b"")
    assert cache.get("one") is None


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    def fill_up(file, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = ScoreCache(tmp_path, {})
    monkeypatch.setattr(np, "save", fill_up)
    with pytest.raises(FlexSelectError, match=r"\.npy: could not be written \(No space left on device; "):
        cache.put("one", torch.arange(5.0))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["teacher.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"loss": "kendall"}, "loss=kendall: must be one of spearman, pairwise, l1, spearman_l2"),
        ({"learning_rat": 1.0}, "unknown training argument learning_rat: "),
    ],
)
def test_what_is_not_known_is_refused(llava, tmp_path, arguments, says):
    with pytest.raises(OptionError, match=f"^{re.escape(says)}"):
        train(llava, tmp_path, **arguments)
