"""The dump files: what goes in comes out, and a failed write leaves nothing."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms_flexselect import FlexSelect, Qwen2_5_VL
from lmms_flexselect.dump import read_selection, write_selection
from tests.support.random_models import Part, qwen2_5_vl, video_inputs

SAMPLE = {
    "task": "videomme",
    "split": "test",
    "doc_id": 7,
    "videos": [{"path": "/videos/ä b.mp4", "fps": 29.97, "frames_indices": [0, 3, 6]}],
}


@pytest.fixture(scope="module")
def selection():
    """Of two videos, one of them small enough to stay whole and unscored."""
    family = Qwen2_5_VL(qwen2_5_vl())
    row: list[Part] = [3, ("video", (9, 2, 3)), 2, ("video", (1, 1, 4)), 5]
    (prompt,) = family.prompts(video_inputs([row], [1.0, 1.0]))
    return FlexSelect(family.reference_layer(1), token_budget=20, max_frames_per_set=4)(prompt)


def test_what_goes_in_comes_out(tmp_path, selection):
    path = tmp_path / "deep" / "er" / "sample.npz"
    write_selection(path, selection, SAMPLE)
    arrays, sample = read_selection(path)
    assert sample == SAMPLE
    wanted = {
        "kept": (selection.visual_kept, np.bool_),
        "scores": (selection.scores, np.float32),
        "frame": (selection.visual_frame, np.int32),
        "video": (selection.visual_video, np.int16),
        "frame_set": (selection.frame_set, np.int32),
        "column": (selection.visual_columns, np.int32),
        "positions": (selection.prompt.position_ids, np.int32),
        "input_ids": (selection.prompt.input_ids, np.int32),
        "grids": (torch.tensor([[9, 2, 3], [1, 1, 4]]), np.int32),
    }
    assert set(arrays) == set(wanted)
    for name, (tensor, dtype) in wanted.items():
        assert arrays[name].dtype == dtype, name
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), err_msg=name)
    assert 0 < arrays["kept"].sum() < len(arrays["kept"])
    assert np.isnan(arrays["scores"]).sum() == 4


def test_a_prompt_can_be_put_together_again(tmp_path, selection):
    """What the file's documentation promises: where each kept token stood, and what each array counts."""
    write_selection(tmp_path / "a.npz", selection, {})
    arrays, _ = read_selection(tmp_path / "a.npz")
    full = np.flatnonzero(selection.keep.numpy())
    assert arrays["input_ids"].shape == full.shape
    assert arrays["positions"].shape == (3, len(full))
    of_prompt = np.isin(full, arrays["column"])
    np.testing.assert_array_equal(full[of_prompt], arrays["column"][arrays["kept"]])


def test_plain_values_of_any_library_are_written(tmp_path, selection):
    """Metadata of a reader may hold numpy or torch numbers, or paths."""
    odd = {"fps": np.float64(2.5), "indices": torch.tensor([1, 2]), "array": np.arange(3), "path": Path("/v.mp4")}
    write_selection(tmp_path / "a.npz", selection, odd)
    _, sample = read_selection(tmp_path / "a.npz")
    assert sample == {"fps": 2.5, "indices": [1, 2], "array": [0, 1, 2], "path": "/v.mp4"}


def test_the_file_holds_no_pickle(tmp_path, selection):
    path = tmp_path / "a.npz"
    write_selection(path, selection, SAMPLE)
    with np.load(path, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
        assert json.loads(str(stored["sample"])) == SAMPLE
    # Compressed: thousands of scores a sample, hundreds of thousands of samples.
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_a_file_that_needs_pickle_is_not_read(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, sample=np.array({"a": 1}, dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_selection(path)


def test_others_may_read_it(tmp_path, selection):
    path = tmp_path / "a.npz"
    write_selection(path, selection, SAMPLE)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_second_write_replaces_the_first(tmp_path, selection):
    path = tmp_path / "a.npz"
    write_selection(path, selection, {"doc_id": 1})
    write_selection(path, selection, {"doc_id": 2})
    assert read_selection(path)[1] == {"doc_id": 2}
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("where", ["savez_compressed", "replace"])
def test_a_failed_write_leaves_nothing(tmp_path, selection, monkeypatch, where):
    path = tmp_path / "a.npz"
    path.write_bytes(b"an earlier run's")

    def full_disk(*args, **kwargs):
        if where == "savez_compressed":
            args[0].write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np if where == "savez_compressed" else os, where, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_selection(path, selection, SAMPLE)
    assert os.listdir(tmp_path) == ["a.npz"]
    assert path.read_bytes() == b"an earlier run's"


def test_a_folder_that_cannot_be_made(tmp_path, selection):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_selection(tmp_path / "file" / "a.npz", selection, SAMPLE)
    assert os.listdir(tmp_path) == ["file"]


def test_a_prompt_without_video_can_be_written(tmp_path, selection):
    family = Qwen2_5_VL(qwen2_5_vl())
    (prompt,) = family.prompts(video_inputs([[6]]))
    write_selection(tmp_path / "a.npz", FlexSelect(None)(prompt), {})
    arrays, _ = read_selection(tmp_path / "a.npz")
    assert arrays["grids"].shape == (0, 3)
    assert arrays["kept"].shape == (0,)
