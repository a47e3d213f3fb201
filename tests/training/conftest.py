"""Teachers to train students of, and a data set of needle videos beside them."""

from __future__ import annotations

import json

import pytest

from lmms_flexselect.needle import CHECKPOINTS
from lmms_flexselect.needle.benchmark import NEEDLES_PER_VIDEO, question
from lmms_flexselect.needle.videos import NeedleVideo, write_video
from tests.support.trained import Trained


@pytest.fixture(scope="session", params=sorted(p.name for p in CHECKPOINTS.iterdir()))
def trained(request):
    return Trained(request.param)


@pytest.fixture(scope="session")
def llava():
    return Trained("llava_vid")


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    """Ten needle videos with two questions each, as LLaVA-Video-178K has its own."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(10):
        video = NeedleVideo.draw(number, 8, NEEDLES_PER_VIDEO)
        write_video(folder / f"videos/{number}.mp4", video.frames())
        for needle in video.needles[:2]:
            turns = [("human", f"<image>\n{question(needle.colour)}"), ("gpt", needle.shape)]
            rows.append(
                {
                    "id": f"{number}-{needle.colour}",
                    "video": f"{number}.mp4",
                    "data_source": "needle",
                    "conversations": [{"from": who, "value": said} for who, said in turns],
                }
            )
    (folder / "needles_oe_qa.json").write_text(json.dumps(rows))
    return folder
