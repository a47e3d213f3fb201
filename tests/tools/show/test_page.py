"""The page holds all that it shows, and nothing of it comes from elsewhere; the picture is one."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lmms_flexselect.tools.show.page import page
from lmms_flexselect.tools.show.sheet import contact_sheet, dumped_sheet
from lmms_flexselect.tools.show.views import read_views, thumbnails
from tests.tools.show.conftest import COLUMNS, FRAMES, ROWS


class Parsed(HTMLParser):
    """Ids, what is loaded from elsewhere, and the texts of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.loaded, self.texts, self._inside = [], [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.ids += [known["id"]] if "id" in known else []
        self.loaded += [known[name] for name in ("src", "href", "srcset", "action") if name in known]
        self._inside = known.get("id", tag) if tag in ("script", "style", "title") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        self.texts[self._inside] = self.texts.get(self._inside, "") + data


@pytest.fixture
def made(dump):
    (sample,) = read_views(dump(marks=2), "flexselect, layer 1")
    sample.question = 'Is 1 < 2? </script><script>alert("$data")'
    sample.views[0].answer, sample.views[0].correct, sample.target = "<b>A</b>", 0.0, "B"
    return sample


@pytest.fixture
def parsed(made):
    pictures = {(made.path, tuple(made.indices)): thumbnails(made.path, made.indices)}
    return Parsed(page([made], pictures, "a <title>"))


def test_the_data_are_what_was_selected(made, parsed):
    data = json.loads(parsed.texts["data"])
    (sample,) = data["samples"]
    (view,) = sample["views"]
    assert sample["question"] == made.question
    assert (view["answer"], view["correct"], sample["target"]) == ("<b>A</b>", 0.0, "B")
    cells = np.frombuffer(base64.b64decode(view["cells"]), np.uint8).reshape(sample["grid"])
    assert sample["grid"] == [FRAMES, ROWS, COLUMNS]
    assert ((cells >= 128) == made.views[0].kept).all()
    np.testing.assert_allclose(((cells & 127) - 1) / 126, made.views[0].rank, atol=0.005)
    assert (view["kept"], view["tokens"], view["beside"]) == (16, 64, [1] * FRAMES)
    frames = data["videos"][sample["video"]]
    assert len(frames) == FRAMES == len(sample["seconds"])
    image = Image.open(io.BytesIO(base64.b64decode(frames[0])))
    assert (image.format, image.size) == ("JPEG", (56, 56))


def test_what_was_not_scored_has_no_rank(dump):
    (sample,) = read_views(dump(scores=np.full(48, np.nan, np.float32)), "uniform")
    text = page([sample], {(sample.path, tuple(sample.indices)): []}, "t")
    (view,) = json.loads(Parsed(text).texts["data"])["samples"][0]["views"]
    assert set(base64.b64decode(view["cells"])) == {0, 128}
    assert view["best"] == [None] * FRAMES


def test_nothing_comes_from_elsewhere(parsed):
    assert parsed.loaded == ["data:,"]
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest", parsed.texts["style"])
    assert not re.search(r"https?:|@import|fetch\(|XMLHttpRequest|import\(", parsed.texts["script"])
    assert parsed.texts["title"] == "a <title>"


def test_the_script_finds_every_element_that_it_asks_for(parsed):
    asked = set(re.findall(r'\bat\("([\w-]+)"\)', parsed.texts["script"]))
    assert asked <= set(parsed.ids)
    assert {"view", "other", "set", "sample", "strip", "sheet"} <= asked
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_sheet_dims_what_was_dropped(tmp_path, made, dump):
    path = tmp_path / "sheet.png"
    white = [np.full((28, 42, 3), 255, np.uint8)] * FRAMES
    brightness = {}
    for kept in (True, False):
        made.views[0].kept[:] = kept
        contact_sheet(made, made.views[0], white, path)
        brightness[kept] = np.asarray(Image.open(path).convert("L")).mean()
    assert brightness[True] > brightness[False] + 20
    dumped_sheet(dump(), path)
    assert Image.open(path).size[0] == 1400


def test_thumbnails_are_no_larger_than_they_need_be(stock_videos):
    path = str(stock_videos["videomme"][0])
    few = thumbnails(path, [0, 1])
    many = thumbnails(path, list(range(2)) * 200)
    assert few[0].shape[1] <= 224
    assert many[0].shape[1] <= 112
    assert len(many) == 400
