"""The processor in upstream's hands: media are read while rendering, and then there are none left to fetch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lmms_flexselect.errors import FlexSelectError, VideoError
from lmms_flexselect.families.grid_frames import FrameSampling, read_video
from lmms_flexselect.models.grid_media import GridMedia
from lmms_flexselect.needle.videos import NeedleVideo, write_video

PIXELS = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
SAMPLING = FrameSampling(4)


class FakeProcessor:
    """Renders every element as its type, and gives back what it is called with."""

    tokenizer = "the wrapped processor's tokenizer"
    video_processor = SimpleNamespace(patch_size=14)

    def apply_chat_template(self, conversations, **kwargs):
        self.template_arguments = kwargs
        single = isinstance(conversations[0], dict)
        rendered = [
            "".join(
                f"<{part['type']}>" if part["type"] != "text" else part["text"]
                for message in conversation
                for part in ([] if isinstance(message["content"], str) else message["content"])
            )
            for conversation in ([conversations] if single else conversations)
        ]
        return rendered[0] if single else rendered

    def __call__(self, **kwargs):
        return kwargs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two readable videos and one that is not."""
    folder = tmp_path_factory.mktemp("media")
    for seed in (0, 1):
        write_video(folder / f"{seed}.mp4", NeedleVideo.draw(seed, 6).frames())
    (folder / "broken.mp4").write_text("not a video")
    return {name: str(folder / f"{name}.mp4") for name in ("0", "1", "broken")}


def image(shade=0):
    return {"type": "image", "image": Image.new("RGB", (56, 56), (shade, 0, 0))}


def video(path):
    return {"type": "video", "video": path, **PIXELS}


def ask(*media, question="What?"):
    text = {"type": "text", "text": question}
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [*media, text]}]


def media_of(conversation):
    return [part for message in conversation for part in message["content"] if isinstance(part, dict)][:-1]


def wrapped(strict=True, **kwargs):
    return GridMedia(FakeProcessor(), SAMPLING, strict, **kwargs)


def test_rendering_reads_and_then_empties_the_messages(files):
    processor = wrapped()
    conversation = ask(image(), video(files["0"]))
    rendered = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
    assert rendered == ["<image><video>What?"]
    assert conversation == ask()
    assert processor.template_arguments == {"tokenize": False, "add_generation_prompt": True}


def test_one_conversation_is_rendered_as_one(files):
    processor = wrapped()
    conversation = ask(video(files["0"]))
    text = processor.apply_chat_template(conversation)
    assert text == "<video>What?"
    assert media_of(conversation) == []
    assert len(processor(text=text)["rows"]) == 1


def test_the_call_puts_in_what_was_read(files):
    processor = wrapped()
    batch = [ask(video(files["0"]), image(10)), ask(image(20), video(files["1"]), video(files["0"]))]
    text = processor.apply_chat_template(batch)
    # Upstream found nothing to fetch and says so.
    called = processor(text=text, images=None, videos=None, padding=True)
    assert called["text"] == ["<video><image>What?", "<image><video><video>What?"]
    assert called["padding"] is True
    assert [picture.getpixel((0, 0))[0] for picture in called["images"]] == [10, 20]
    wanted = [read_video(video(files[name]), SAMPLING) for name in ("0", "1", "0")]
    assert all(torch.equal(a, w.frames) for a, w in zip(called["videos"], wanted, strict=True))
    assert called["video_metadata"] == [w.metadata for w in wanted]


def test_media_are_handed_over_once(files):
    processor = wrapped()
    first = processor.apply_chat_template([ask(video(files["0"]), image())])
    processor(text=first)
    with pytest.raises(FlexSelectError, match="uses a rendered prompt twice"):
        processor(text=first)
    with pytest.raises(FlexSelectError, match="changes a rendered prompt"):
        processor(text=[text.strip() for text in processor.apply_chat_template([ask()])])
    called = processor(text=processor.apply_chat_template([ask()]))
    assert called["images"] is None
    assert called["videos"] is None
    assert "video_metadata" not in called


@pytest.mark.parametrize("pass_metadata", [True, False])
def test_metadata_go_on_only_where_upstream_passes_them(files, pass_metadata):
    processor = wrapped(pass_metadata=pass_metadata)
    called = processor(text=processor.apply_chat_template([ask(video(files["0"]))]))
    assert len(called["videos"]) == 1
    assert ("video_metadata" in called) is pass_metadata


def test_rows_tell_what_was_read(files):
    processor = wrapped()
    text = processor.apply_chat_template([ask(video(files["0"]), video(files["1"]), question="Which?"), ask()])
    first, second = processor(text=text)["rows"]
    assert [v["path"] for v in first.videos] == [files["0"], files["1"]]
    assert first.videos[0]["frames_indices"] == [0, 4, 7, 11]
    assert first.videos[0]["fps"] == 2.0
    assert first.seconds > second.seconds >= 0
    assert (first.error, second.error, second.videos) == (None, None, [])
    assert processor(text=[])["rows"] == []


def test_strict_stops_at_an_unreadable_video(files):
    with pytest.raises(VideoError, match=r"^.*broken\.mp4: not a readable video"):
        wrapped(strict=True).apply_chat_template([ask(video(files["broken"]))])


def test_otherwise_its_row_goes_on_without_media(files):
    processor = wrapped(strict=False)
    batch = [ask(video(files["0"])), ask(image(), video(files["1"]), video(files["broken"])), ask(video(files["1"]))]
    text = processor.apply_chat_template(batch)
    assert text == ["<video>What?", "What?", "<video>What?"]
    called = processor(text=text)
    rows = called["rows"]
    assert [row.error is None for row in rows] == [True, False, True]
    assert rows[1].error.startswith(f"{files['broken']}: ")
    assert called["images"] is None
    wanted = [read_video(video(files[name]), SAMPLING).frames for name in ("0", "1")]
    assert all(torch.equal(a, w) for a, w in zip(called["videos"], wanted, strict=True))
    assert len(called["video_metadata"]) == 2


def test_a_list_of_images_is_a_video():
    """Tasks may hand over frames instead of a file."""
    processor = wrapped()
    frames = [Image.new("RGB", (56, 56), (shade, 0, 0)) for shade in (0, 50, 100)]
    called = processor(text=processor.apply_chat_template([ask({"type": "video", "video": frames, **PIXELS})]))
    # An odd number is filled up with the last one.
    assert called["videos"][0][:, 0, 0, 0].tolist() == [0, 50, 100, 100]
    assert called["video_metadata"][0]["video_backend"] == "images"


def test_everything_else_is_the_wrapped_processors():
    processor = wrapped()
    assert processor.tokenizer == "the wrapped processor's tokenizer"
    with pytest.raises(AttributeError, match="batch_decode"):
        _ = processor.batch_decode
