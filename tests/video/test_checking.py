"""A folder of videos is looked at before a long run: one line for each bad file."""

from __future__ import annotations

from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.tools.doctor.command import main
from lmms_flexselect.video.checking import report_of_files
from tests.support.changing_frames import changing_frames


def test_bad_files_of_a_folder_are_listed(tmp_path, capsys):
    for name in ("a", "b", "cut"):
        write_video(tmp_path / f"{name}.mp4", changing_frames(16), 4.0)
    content = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 9 // 10])
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    text, bad = report_of_files([str(path) for path in sorted(tmp_path.iterdir())])
    assert bad == 2
    cut, page, last = text.splitlines()
    assert cut.startswith(f"{tmp_path / 'cut.mp4'} ")
    assert "truncated" in cut
    assert page.startswith(f"{tmp_path / 'page.mp4'}  is a web page")
    assert last == "2 of 4 videos can be opened and are whole"
    assert main(["--videos", str(tmp_path)]) == 1
    assert capsys.readouterr().out == text + "\n"
    for name in ("cut", "page"):
        (tmp_path / f"{name}.mp4").unlink()
    assert main(["--videos", str(tmp_path)]) == 0
