"""`prepare` where it cannot go on, and its command line without a hub."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import namedtuple

import pytest

from lmms_flexselect.cli import main as command_line
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.preparation import hub, prepare
from lmms_flexselect.tools.preparation.benchmarks import BENCHMARKS
from lmms_flexselect.tools.preparation.command import main
from lmms_flexselect.tools.preparation.presence import read_record
from tests.support.data_sets import zipped

GIB = 1 << 30
ARCHIVES = {"a.zip": {"a.zip": 10 * GIB}, "b.tar": {"b.tar.part.aa": 20 * GIB, "b.tar.part.ab": 5 * GIB}}
VIDEOMME = BENCHMARKS["videomme"]


@pytest.fixture
def disk(monkeypatch):
    """So many GiB free; nothing downloaded."""
    usage = namedtuple("usage", "total used free")

    def set_free(gib):
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, gib * GIB))

    monkeypatch.setattr(hub, "cached", lambda repository, name: None)
    return set_free


@pytest.mark.parametrize(("delete", "needs"), [(False, 70), (True, 60)])
def test_room_on_the_disk(disk, tmp_path, delete, needs):
    folder = tmp_path / "videomme"
    disk(needs)
    prepare._check_room(VIDEOMME, folder, ARCHIVES, delete)
    disk(needs - 1)
    with pytest.raises(
        FlexSelectError, match=rf"needs {needs}.0 GiB on the disk of .* {needs - 1}.0 GiB are free"
    ) as caught:
        prepare._check_room(VIDEOMME, folder, ARCHIVES, delete)
    assert ("--delete_archives" in str(caught.value)) is not delete


def test_what_is_there_needs_no_room(disk, tmp_path, monkeypatch):
    folder = tmp_path / "videomme"
    folder.mkdir()
    with (folder / "partly").open("wb") as file:
        file.truncate(GIB)  # a hole: takes no room here
    monkeypatch.setattr(hub, "cached", lambda repository, name: tmp_path if name == "a.zip" else None)
    disk(25 + 35 - 1)
    prepare._check_room(VIDEOMME, folder, ARCHIVES, False)
    disk(25 + 35 - 2)
    with pytest.raises(FlexSelectError, match="make room"):
        prepare._check_room(VIDEOMME, folder, ARCHIVES, False)


def test_parts_of_an_archive_are_put_in_order(monkeypatch):
    listed = {"videos.tar.part.ab": 2, "videos.tar.part.aa": 1, "subtitles.tar": 3, "README.md": 4, "lvb_val.json": 5}
    monkeypatch.setattr(hub, "files", lambda repository: listed)
    found = prepare._archives(BENCHMARKS["longvideobench"])
    assert {name: list(parts.items()) for name, parts in found.items()} == {
        "subtitles.tar": [("subtitles.tar", 3)],
        "videos.tar": [("videos.tar.part.aa", 1), ("videos.tar.part.ab", 2)],
    }


@pytest.mark.parametrize("step", [prepare._archives, lambda b: prepare._fetch_questions(b, b.repository)])
def test_a_repository_of_another_layout(monkeypatch, step):
    monkeypatch.setattr(hub, "files", lambda repository: {"README.md": 3})
    with pytest.raises(FlexSelectError, match="this needs a newer lmms-flexselect"):
        step(VIDEOMME)


def test_two_at_once(tmp_path):
    """The other one is another process: within one, lmms-eval's evaluator makes one lock of all of a path."""
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    lock = str(tmp_path / ".flexselect_prepare_videomme.lock")
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(FlexSelectError, match="another `lmms-flexselect prepare videomme` is at work"):
            prepare.prepare(VIDEOMME, tmp_path)
        other.kill()


def test_an_hf_home_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FlexSelectError, match="file/home: cannot be written to"):
        prepare.prepare(VIDEOMME, tmp_path / "file" / "home")


@pytest.fixture
def one_archive(monkeypatch, tmp_path):
    """A hub that has questions that cannot be complete, and one archive in its cache."""
    path = tmp_path / "cached.zip"
    zipped(path, ["data/video0.mp4"])
    monkeypatch.setattr(prepare, "_fetch_questions", lambda benchmark, repository: None)
    monkeypatch.setattr(hub, "files", lambda repository: {"videos_chunked_01.zip": path.stat().st_size})
    monkeypatch.setattr(hub, "cached", lambda repository, name: path)
    monkeypatch.setattr(hub, "download", lambda repository, name: path)
    return path


def test_a_damaged_archive_is_not_kept(one_archive, tmp_path):
    one_archive.write_bytes(one_archive.read_bytes()[:-30])
    with pytest.raises(FlexSelectError, match="was damaged and is deleted") as caught:
        prepare.prepare(VIDEOMME, tmp_path / "home")
    assert "\n" not in str(caught.value)
    assert not one_archive.exists()
    assert read_record(tmp_path / "home" / "videomme") == {}


def test_a_disk_that_fills_up_ends_in_one_line(one_archive, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as during:
        during.setattr("shutil.copyfileobj", full)
        with pytest.raises(FlexSelectError, match="videomme: No space left on device"):
            prepare.prepare(VIDEOMME, tmp_path / "home")
    assert read_record(tmp_path / "home" / "videomme") == {}
    prepare.prepare(VIDEOMME, tmp_path / "home")
    assert list(read_record(tmp_path / "home" / "videomme")) == ["videos_chunked_01.zip"]
    assert one_archive.exists()


def test_without_a_hub_each_benchmark_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert command_line(["prepare", "all"]) == 1
    out = capsys.readouterr().out
    for benchmark in BENCHMARKS.values():
        assert f"{benchmark.name}: {benchmark.questions[0].repository}: unset HF_HUB_OFFLINE to download" in out
        assert not (tmp_path / benchmark.folder).exists()


def test_check_of_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not yet"))
    assert main(["mlvu", "videomme", "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["benchmark", "videomme", "mlvu"]
    assert "mlvu: run lmms-flexselect prepare mlvu" in lines
    assert not (tmp_path / "not yet").exists()


def test_hf_home_that_is_not_set(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["mlvu", "--check"])
    assert f"mlvu_dev finds its videos only where HF_HOME is set: export HF_HOME={tmp_path}" in capsys.readouterr().out
    main(["videomme", "--check"])
    assert "mlvu" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["video-mme"], ["videomme", "--chek"], ["--check"]])
def test_a_wrong_command_line(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: lmms-flexselect prepare" in capsys.readouterr().err
