"""A key changes with the file and with what is read of it."""

from __future__ import annotations

import os
import shutil

import pytest

from lmms_flexselect.video.key import video_key


def test_a_key_is_of_the_file_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"1234")
    os.utime(path, ns=(5, 7))
    key = video_key(path, 64, "decord")
    assert key is not None
    assert (key.path, key.reading) == (str(path), (64, "decord"))
    monkeypatch.chdir(tmp_path)
    assert video_key("video.mp4", 64, "decord") == key == video_key(f"file://{path}", 64, "decord")
    assert hash(video_key("video.mp4", 64, "decord")) == hash(key)
    assert video_key(path, 32, "decord") != key
    path.read_bytes()
    assert video_key(path, 64, "decord") == key
    os.utime(path, ns=(5, 8))
    later = video_key(path, 64, "decord")
    path.write_bytes(b"12345")
    os.utime(path, ns=(5, 8))
    assert len({key, later, video_key(path, 64, "decord")}) == 3


def replaced_by_a_copy(path, other):
    """As ``rsync -t`` does it, after a pause."""
    shutil.copy2(other, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def written_over(path, other):
    path.write_bytes(other.read_bytes())
    shutil.copystat(other, path)


def moved_there(path, other):
    os.replace(other, path)


def linked_to(path, other):
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("replace", [replaced_by_a_copy, written_over, moved_there, linked_to])
@pytest.mark.parametrize("what", ["file", "frame of a folder", "file in a linked folder"])
def test_another_file_of_the_same_size_and_time_has_another_key(tmp_path, replace, what):
    folder, others = tmp_path / "videos", tmp_path / "others"
    for place, content in ((folder, b"1234"), (others, b"5678")):
        place.mkdir()
        (place / "0.png").write_bytes(content)
        os.utime(place / "0.png", ns=(5, 7))
    named = {"file": folder / "0.png", "frame of a folder": folder}.get(what, tmp_path / "link" / "0.png")
    (tmp_path / "link").symlink_to(folder)
    key = video_key(named)
    assert key == video_key(named)
    if what == "file in a linked folder" and replace is linked_to:
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(others)
    else:
        replace(folder / "0.png", others / "0.png")
    assert video_key(named) != key


def test_frames_that_change_places_are_other_frames(tmp_path):
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(5, 7))
    key = video_key(tmp_path)
    for source, target in (("0.png", "2.png"), ("1.png", "0.png"), ("2.png", "1.png")):
        (tmp_path / source).rename(tmp_path / target)
    assert video_key(tmp_path) != key


def test_what_is_not_there_has_none(tmp_path):
    assert video_key(tmp_path / "none.mp4") is None
