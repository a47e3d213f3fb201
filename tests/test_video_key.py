"""A key changes with the file and with what is read of it."""

from __future__ import annotations

import os

from lmms_flexselect.video_key import video_key


def test_a_key_is_of_the_file_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"1234")
    os.utime(path, ns=(5, 7))
    key = video_key(path, 64, "decord")
    assert key is not None
    assert (key.path, key.size, key.modified_ns, key.reading) == (str(path), 4, 7, (64, "decord"))
    monkeypatch.chdir(tmp_path)
    assert video_key("video.mp4", 64, "decord") == key == video_key(f"file://{path}", 64, "decord")
    assert hash(video_key("video.mp4", 64, "decord")) == hash(key)
    assert video_key(path, 32, "decord") != key
    os.utime(path, ns=(5, 8))
    later = video_key(path, 64, "decord")
    path.write_bytes(b"12345")
    os.utime(path, ns=(5, 8))
    assert len({key, later, video_key(path, 64, "decord")}) == 3


def test_a_folder_of_frames_changes_with_its_files(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes(b"12")
    for path in (*folder.iterdir(), folder):
        os.utime(path, ns=(5, 7))
    key = video_key(folder)
    assert key is not None
    assert (key.size, key.modified_ns) == (4, 7)
    os.utime(folder / "1.png", ns=(5, 9))
    assert video_key(folder) != key


def test_what_is_not_there_has_none(tmp_path):
    assert video_key(tmp_path / "none.mp4") is None
