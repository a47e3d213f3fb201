"""Needle models as the analysis loads them, videos beside them, and pictures to put into those."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lmms_flexselect.needle.videos import NeedleVideo, write_video
from lmms_flexselect.tools.analysis.model import load

FAMILIES = ("llava_vid", "qwen2_5_vl", "internvl_hf")


@pytest.fixture(scope="session")
def loaded_model(hf_home):
    """``loaded_model(family, selector)``: a needle model, loaded once."""
    loaded = {}

    def get(family, selector="flexselect"):
        if (family, selector) not in loaded:
            loaded[family, selector] = load(f"{family}_flexselect", f"pretrained=needle,selector={selector}")
        return loaded[family, selector]

    return get


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Three videos of twenty frames, one of them a folder further down, and two pictures with questions."""
    folder = tmp_path_factory.mktemp("haystack")
    for number, name in enumerate(("a.mp4", "b.mp4", "more/a.mp4")):
        write_video(folder / "videos" / name, NeedleVideo.draw(number, 10, 0).frames())
    (folder / "videos" / "notes.txt").write_text("no video")
    (folder / "needles").mkdir()
    entries = []
    for name, colour in (("sunset", (250, 10, 10)), ("lake", (10, 10, 250))):
        Image.fromarray(np.full((30, 40, 3), colour, np.uint8)).save(folder / "needles" / f"{name}.png")
        entries.append({"image": f"{name}.png", "question": f"What shape is the {name} glyph?", "answer": name})
    (folder / "needles" / "needles.json").write_text(json.dumps(entries))
    return folder
