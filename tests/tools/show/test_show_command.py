"""``lmms-flexselect show``: a finished run, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lmms_flexselect.cli import main
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.tools.show.dumps import read_dumps
from tests.support.results_files import answers, write_run


def page_data(folder: Path):
    """What the page in a folder shows."""
    text = (folder / "page.html").read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_finished_run_beside_another(tmp_path, capsys, dump):
    write_run(tmp_path / "ours", {"videomme": answers({1})})
    write_run(tmp_path / "theirs", {"videomme": answers({0})})
    for document in (0, 1):
        dump("ours_dump", document)
        dump("theirs_dump", document, scores=np.full(48, np.nan, np.float32))
    dump("theirs_dump", 2)
    words = ["show", "--dump", "ours_dump", "--samples", "ours", "--compare", "theirs_dump"]
    words += ["--compare_samples", "theirs", "--output", "out"]
    paths = {"ours_dump", "ours", "theirs_dump", "theirs", "out"}
    assert main([str(tmp_path / word) if word in paths else word for word in words]) == 0
    data = page_data(tmp_path / "out")
    assert len(data["videos"]) == 1  # both samples are about it
    seen = [
        (sample["title"], sample["target"], [(v["name"], v["answer"], v["correct"]) for v in sample["views"]])
        for sample in data["samples"]
    ]
    assert seen == [
        ("videomme, document 0", "A", [("ours_dump", "A", 1.0), ("theirs_dump", "B", 0.0)]),
        ("videomme, document 1", "B", [("ours_dump", "C", 0.0), ("theirs_dump", "B", 1.0)]),
    ]
    assert len(list((tmp_path / "out").glob("videomme_document_*_dump.png"))) == 4
    assert "videomme, document 0: ours_dump: 12 of 48 tokens kept; answer: A\n" in capsys.readouterr().out


def test_only_what_was_answered_wrong(tmp_path, dump):
    file = write_run(tmp_path / "run", {"videomme": answers({1, 2})})
    for document in range(4):
        path = dump(document=document)
    samples = [file.with_name(file.name.replace("_results.json", "_samples_videomme.jsonl"))]
    found = read_dumps(path.parent, samples, only="wrong")
    assert [each.title for each in found] == ["videomme, document 1", "videomme, document 2"]
    assert len(read_dumps(path.parent, samples, only="wrong", limit=1)) == 1
    assert [each.views[0].correct for each in read_dumps(path.parent, samples)] == [1, 0, 0, 1]
    file.unlink()  # which says what the score is
    assert [each.views[0].correct for each in read_dumps(path.parent, samples)] == [None] * 4
    with pytest.raises(FlexSelectError, match=r"--only right: no sample of .* is known to be right"):
        read_dumps(path.parent, samples, only="right")


def refused(capsys, *words):
    """The one line that a command is refused with."""
    assert main(["show", *map(str, words)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_folders_that_hold_no_dumps(tmp_path, capsys, dump):
    assert "nothing: no such folder of dump_selection" in refused(capsys, "--dump", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "empty: no .npz of dump_selection in it" in refused(capsys, "--dump", tmp_path / "empty")
    path = dump()
    np.savez(path.parent / "weights.npz", a=np.zeros(3))
    assert "weights.npz: not a whole file of dump_selection" in refused(capsys, "--dump", path.parent)
    (path.parent / "weights.npz").unlink()
    path.write_bytes(path.read_bytes()[:500])
    assert f"{path}: not a whole file of dump_selection" in refused(capsys, "--dump", path.parent)


def test_samples_of_other_runs(tmp_path, capsys, dump):
    folder = dump(document=99).parent
    write_run(tmp_path / "run", {"videomme": answers(set())})
    said = refused(capsys, "--dump", folder, "--samples", tmp_path / "run")
    assert "run: answers none of the samples in" in said
    assert "no *_samples_*.jsonl in it" in refused(capsys, "--dump", folder, "--samples", folder)
    dump("other", document=1)
    said = refused(capsys, "--dump", folder, "--compare", tmp_path / "other")
    assert "have no sample in common" in said


def test_videos_that_are_gone_and_folders_that_cannot_be_written(tmp_path, capsys, dump, video):
    folder = dump().parent
    output = ("--output", tmp_path / "out")
    said = refused(capsys, "--dump", folder, "--videos", tmp_path, *output)
    assert f"{tmp_path / Path(video).name}: no such video file" in said
    (tmp_path / "file").touch()
    assert "--output" in (said := refused(capsys, "--dump", folder, "--output", tmp_path / "file"))
    assert "cannot be written" in said
    assert main(["show", "--dump", str(folder), "--videos", str(Path(video).parent), *map(str, output)]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a video and a question"),
        (["a.mp4"], "give a video and a question"),
        (["a.mp4", " "], "no such video file"),
        (["a.mp4", "Who?", "--limit", "3"], "--limit: goes with --dump"),
        (["--dump", "d", "--layers", "all"], "--layers: goes with a video and a question"),
        (["a.mp4", "--dump", "d"], "give a video and a question, or --dump, not both"),
        (["--dump", "d", "--only", "wrong"], "goes with --samples"),
        (["--dump", "d", "--limit", "0"], "must be at least 1"),
        (["--dump", "d", "--compare", "a", "--compare", "b"], "one other run's folder"),
    ],
)
def test_words_that_do_not_go_together(capsys, words, says):
    assert says in refused(capsys, *words)
