"""Reading that comes to a halt becomes the error of its video, and keeps nothing else waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from lmms_flexselect.errors import VideoError
from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.video import decord_reader, reading
from lmms_flexselect.video.file import file_complaint
from lmms_flexselect.video.reading import Backend, with_video
from lmms_flexselect.video.watchdog import watched
from tests.support.changing_frames import changing_frames


def test_work_that_stands_still_is_given_up():
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"^x\.mp4: reading it came to a halt, .* for 0\.3 s; .*video_timeout"):
        watched("x.mp4", 0.3, lambda progress: threading.Event().wait())
    assert time.monotonic() - started < 3


def test_work_that_goes_on_may_take_longer():
    def work(progress):
        for _ in range(6):
            time.sleep(0.1)
            progress()
        return "done"

    assert watched("x.mp4", 0.4, work) == "done"


def test_its_errors_are_those_of_the_work():
    def work(progress):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        watched("x.mp4", 5, work)


def test_what_is_given_up_ends_at_its_next_step():
    ended = threading.Event()

    def work(progress):
        time.sleep(0.5)
        try:
            progress()
        finally:
            ended.set()

    with pytest.raises(VideoError, match="came to a halt"):
        watched("x.mp4", 0.1, work)
    assert ended.wait(5)


def test_a_decoder_that_spins_in_another_process_is_killed(tmp_path, monkeypatch):
    spinning = tmp_path / "spin.py"
    spinning.write_text("import os, sys\nopen(sys.argv[1] + '.pid', 'w').write(str(os.getpid()))\nwhile True: pass\n")
    monkeypatch.setattr(decord_reader, "_CHILD", spinning)
    path = tmp_path / "video.mp4"
    write_video(path, changing_frames(8), 4.0)
    with pytest.raises(VideoError, match="came to a halt"):
        with_video(str(path), lambda video: video.read([0, 3]), Backend("decord", 2.0))
    pid = int((tmp_path / "video.mp4.pid").read_text())
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.1)


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending():
    program = (
        "import threading\nfrom lmms_flexselect.video.watchdog import watched\n"
        "try: watched('x', 0.2, lambda progress: threading.Event().wait())\nexcept ValueError as error: print(error)\n"
    )
    made = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert "came to a halt" in made.stdout


def test_what_is_no_file_of_its_own_is_not_opened(tmp_path):
    pipe, link, page = tmp_path / "pipe.mp4", tmp_path / "link.mp4", tmp_path / "page.mp4"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "gone.mp4")
    page.write_text("<!DOCTYPE html><html>not found</html>")
    assert file_complaint(str(pipe)) == "is a named pipe, not a video file"
    assert file_complaint("/dev/zero") == "is a device, not a video file"
    assert str(file_complaint(str(link))).startswith(f"is a broken link to {tmp_path}/gone.mp4; ")
    assert str(file_complaint(str(page))).startswith("is a web page (HTML or XML), not a video")
    page.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert str(file_complaint(str(page))).endswith("run git lfs pull")
    page.write_text("#EXTM3U\nother.ts\n")
    assert str(file_complaint(str(page))).startswith("is a playlist")
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    assert "cannot be looked at" in str(file_complaint(str(loop)))
    for path in (pipe, link, page):
        with pytest.raises(VideoError, match=f"^{path}: "):
            reading.check_video(str(path))
