"""``lmms-flexselect prepare`` as it is run, against a stand-in for the hub with all questions and tiny videos."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import data_sets
from tests.support.hub_server import serving

COMMAND = [sys.executable, "-m", "lmms_flexselect.cli", "prepare"]


def environment(hub, home, **more):
    """A user's, with the stand-in for a hub."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    # Xet is the hub's own protocol for large files; the stand-in speaks plain HTTP.
    return {**own, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}


def prepare(hub, home, *words, **more):
    env = environment(hub, home, **more)
    return subprocess.run([*COMMAND, *words], env=env, capture_output=True, text=True, timeout=120, check=False)


def line(done, begin):
    (found,) = [line for line in done.stdout.splitlines() if line.startswith(begin)]
    return found


def row(done, name):
    return line(done, f"{name} ").split()


def test_a_run_that_is_killed_goes_on(tmp_path):
    data_sets.videomme(tmp_path / "hub")
    home = tmp_path / "home"
    second = "lmms-eval/Video-MME/videos_chunked_02.zip"
    with serving(tmp_path / "hub") as hub:
        hub.stalls[second] = 50_000
        run = subprocess.Popen([*COMMAND, "videomme"], env=environment(hub, home), stdout=subprocess.DEVNULL)
        assert hub.stalled.wait(60)
        run.kill()
        run.wait()
        hub.go_on.set()
        looked = prepare(hub, home, "videomme", "--check")
        assert looked.returncode == 1
        assert row(looked, "videomme")[1:6] == ["2,700", "450", "of", "900", "INCOMPLETE"]
        assert "lacks 450 of 900 videos" in looked.stdout

        done = prepare(hub, home, "videomme")
        assert done.returncode == 0, done.stdout + done.stderr
        assert row(done, "videomme")[1:6] == ["2,700", "900", "of", "900", "complete"]
        assert "videos_chunked_01.zip" not in done.stdout  # unpacked before
        folder = tmp_path / "hub" / "lmms-eval" / "Video-MME"
        served = {path.name: hub.served[f"lmms-eval/Video-MME/{path.name}"] for path in folder.glob("*.zip")}
        whole = {path.name: path.stat().st_size for path in folder.glob("*.zip")}
        assert served == {**whole, "videos_chunked_02.zip": whole["videos_chunked_02.zip"] + 50_000}

        asked = len(hub.asked)
        again = prepare(hub, home, "videomme")
        assert again.returncode == 0
        assert len(hub.asked) == asked
    for n in (0, 899):
        name = f"data/video{n}.mp4"
        assert (home / "videomme" / name).read_bytes() == data_sets.content(name)

    # A machine without a hub now finds the questions too.
    code = "import datasets; print(len(datasets.load_dataset('lmms-eval/Video-MME')['test']))"
    offline = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    loaded = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "2700"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "log in with `hf auth login` or set HF_TOKEN, and run this again"),
        ("other", "with the account of this token and run this again"),
    ],
)
def test_a_gated_data_set_without_access(tmp_path, token, says):
    data_sets.longvideobench(tmp_path / "hub")
    with serving(tmp_path / "hub", gated=("longvideobench/LongVideoBench",)) as hub:
        done = prepare(hub, tmp_path / "home", "longvideobench", **({"HF_TOKEN": token} if token else {}))
    assert done.returncode == 1
    told = line(done, "longvideobench: longvideobench/LongVideoBench is gated")
    assert "accept its conditions on https://huggingface.co/datasets/longvideobench/LongVideoBench" in told
    assert told.endswith(says)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "datasets" / "longvideobench").exists()  # lmms-eval would take it for complete


def test_a_gated_data_set_in_parts(tmp_path):
    data_sets.longvideobench(tmp_path / "hub")
    home = tmp_path / "home"
    with serving(tmp_path / "hub", gated=("longvideobench/LongVideoBench",)) as hub:
        done = prepare(hub, home, "longvideobench", HF_TOKEN="accepted")
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done, "longvideobench")[1:9] == ["1,337", *["1,337", "of", "1,337"] * 2, "complete"]
    for name in ("videos/video0.mp4", "videos/video700.mp4", "videos/video1336.mp4", "subtitles/video5_en.json"):
        assert (home / "datasets" / "longvideobench" / name).read_bytes() == data_sets.content(name)


def test_a_video_that_the_hub_does_not_have(tmp_path):
    """And another benchmark in the same run, and archives that are deleted when they are unpacked."""
    data_sets.lvbench(tmp_path / "hub", lacks=2)
    data_sets.mlvu(tmp_path / "hub")
    home = tmp_path / "home"
    with serving(tmp_path / "hub") as hub:
        done = prepare(hub, home, "lvbench", "mlvu", "--delete_archives")
        assert done.returncode == 1
        assert "complete" in row(done, "mlvu")
        assert "complete" in row(done, "lvbench (lvbench)")  # the stock task's questions are about fewer
        assert row(done, "lvbench (flexselect_paper_lvbench)")[2:7] == ["1,549", "101", "of", "103", "INCOMPLETE"]
        assert line(done, f"lvbench: {home / 'lvbench'}: ").endswith(
            "lacks 2 of 103 videos, or they are cut off: id101.mp4, id102.mp4"
        )
        assert "save it as <id>.mp4" in done.stdout
        assert not list((home / "hub").rglob("*.zip"))
        archives = [file for file in (home / "hub").glob("*/blobs/*") if file.read_bytes().startswith(b"PK")]
        assert archives == []
        served = dict(hub.served)
        for name in ("id101.mp4", "id102.mp4"):
            (home / "lvbench" / name).write_bytes(b"from elsewhere")
        again = prepare(hub, home, "lvbench")
        assert again.returncode == 0, again.stdout
        assert hub.served == served
