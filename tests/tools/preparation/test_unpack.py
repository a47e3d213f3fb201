"""Archives that were stopped, cut off, damaged or malicious."""

from __future__ import annotations

import io
import tarfile

import pytest

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.preparation.presence import RECORD, read_record
from lmms_flexselect.tools.preparation.unpack import DAMAGED, damaged, is_unpacked, record, unpack
from tests.support.data_sets import content, tarred, zipped

NAMES = [f"data/video{n}.mp4" for n in range(5)]
SIZES = {name: len(content(name)) for name in NAMES}


def a_zip(folder):
    zipped(folder / "a.zip", NAMES)
    return [folder / "a.zip"]


def a_tar_in_parts(folder):
    whole = tarred(NAMES)
    parts = [folder / f"a.tar.part.a{letter}" for letter in "abc"]
    for number, part in enumerate(parts):  # cut inside a header and inside a file
        part.write_bytes(whole[[0, 700, 1400][number] : [700, 1400, None][number]])
    return parts


@pytest.mark.parametrize("archive", [a_zip, a_tar_in_parts])
def test_all_files_come_out(tmp_path, archive):
    assert unpack(archive(tmp_path), tmp_path / "out") == SIZES
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.mp4")} == {
        name: content(name) for name in NAMES
    }


@pytest.mark.parametrize("archive", [a_zip, a_tar_in_parts])
def test_a_stopped_one_goes_on(tmp_path, monkeypatch, archive):
    parts, out = archive(tmp_path), tmp_path / "out"
    copied = []

    def stops_in_the_third(source, target, length):
        copied.append(target.name)
        if len(copied) == 3:
            target.write(source.read(7))
            raise KeyboardInterrupt
        target.write(source.read())

    monkeypatch.setattr("shutil.copyfileobj", stops_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        unpack(parts, out)
    # A file is there under its name only when it is whole.
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.mp4")) == NAMES[:2]
    assert unpack(parts, out) == SIZES
    assert len(copied) == 3 + 3  # the first two were left alone
    assert sorted(p.name for p in (out / "data").iterdir()) == [name.removeprefix("data/") for name in NAMES]


def test_a_file_that_another_program_left_cut_off_is_written_again(tmp_path):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / NAMES[1]).write_bytes(content(NAMES[1])[:9])
    unpack(a_zip(tmp_path), out)
    assert (out / NAMES[1]).read_bytes() == content(NAMES[1])


@pytest.mark.parametrize("name", ["../outside.mp4", "/outside.mp4", "data/../../outside.mp4"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside(tmp_path, name, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        zipped(path, [name])
    else:
        path.write_bytes(tarred([name]))
    with pytest.raises(FlexSelectError, match="lies outside of"):
        unpack([path], tmp_path / "below" / "out")
    assert not list(tmp_path.rglob("*.mp4"))


def test_links_in_a_tar_are_left_out(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("video.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert unpack([tmp_path / "a.tar"], tmp_path / "out") == {}


def test_damage_is_noticed_and_the_archive_is_not_found_again(tmp_path):
    (path,) = a_zip(tmp_path)
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # inside the first file's content
    blob, link = tmp_path / "blob", tmp_path / "link.zip"
    blob.write_bytes(data)
    link.symlink_to(blob)
    with pytest.raises(DAMAGED) as caught:
        unpack([link], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.mp4"))
    assert str(damaged([link], caught.value)).startswith("link.zip: was damaged and is deleted (Bad CRC-32")
    assert not blob.exists()
    assert not link.is_symlink()


@pytest.mark.parametrize("cut", [300, 600])
def test_a_tar_that_ends_in_a_header_or_a_file_is_noticed(tmp_path, cut):
    (tmp_path / "a.tar").write_bytes(tarred(NAMES)[:cut])
    with pytest.raises(DAMAGED):
        unpack([tmp_path / "a.tar"], tmp_path / "out")


def test_what_is_not_an_archive(tmp_path):
    for name in ("a.zip", "a.tar"):
        (tmp_path / name).write_text("<html>busy</html>")
        with pytest.raises(DAMAGED):
            unpack([tmp_path / name], tmp_path / "out")


def test_the_record(tmp_path):
    sizes = unpack(a_zip(tmp_path), tmp_path / "out")
    out = tmp_path / "out"
    assert not is_unpacked(out, "a.zip", 100)
    record(out, "a.zip", 100, sizes)
    record(out, "b.zip", 5, {})
    assert is_unpacked(out, "a.zip", 100)
    assert is_unpacked(out, "b.zip", 5)
    assert not is_unpacked(out, "a.zip", 101)  # the hub has another one now
    (out / NAMES[4]).write_bytes(b"cut")
    assert not is_unpacked(out, "a.zip", 100)
    (out / NAMES[4]).unlink()
    assert not is_unpacked(out, "a.zip", 100)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a.zip": 3}', '{"a.zip": {"bytes": 3}}'])
def test_a_record_that_does_not_parse_is_none(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    assert read_record(tmp_path) == {}
    assert not is_unpacked(tmp_path, "a.zip", 3)
