"""Which frames InternVL is shown, and what its processor's stand-in makes of images and videos together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lmms_eval.models.simple.internvl2 import get_index
from PIL import Image
from transformers import InternVLVideoProcessor
from transformers.video_utils import VideoMetadata

from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.media import InternVLMedia, PromptForm
from lmms_flexselect.families.internvl.processor import FrameSegments, OriginalProcessor
from lmms_flexselect.needle.tokenizer import TEXT_TOKENS, build_tokenizer
from lmms_flexselect.video.reading import open_video

SIZE, TOKENS_PER_TILE = 28, 1
LENGTHS = [(9, 2.0), (17, 2.0), (100, 25.0), (750, 29.97), (3333, 30.0)]


def video_of(frames, fps):
    return SimpleNamespace(frames=frames, fps=fps, shown=list)


@pytest.mark.parametrize("video", LENGTHS)
@pytest.mark.parametrize("wanted", [1, 2, 7, 8])
def test_frames_are_those_that_transformers_samples(video, wanted):
    expected = InternVLVideoProcessor().sample_frames(VideoMetadata(*video), num_frames=wanted, initial_shift=True)
    assert FrameSegments(wanted).indices(video_of(*video)) == expected.tolist()


@pytest.mark.parametrize("video", LENGTHS)
@pytest.mark.parametrize("fps", [0.25, 1.0, 1.5])
def test_frames_by_rate_are_those_that_transformers_samples(video, fps):
    total, rate = video
    expected = InternVLVideoProcessor().sample_frames(VideoMetadata(*video), fps=fps, initial_shift=True)
    got = FrameSegments(None, fps).indices(video_of(*video))
    assert len(got) == max(1, int(total / rate * fps))
    assert got == expected.tolist()


@pytest.mark.parametrize("video", LENGTHS)
@pytest.mark.parametrize("wanted", [1, 2, 7, 8])
def test_the_aliass_frames_are_those_of_upstreams_internvl2(video, wanted):
    total, fps = video
    expected = get_index(None, fps, total - 1, num_segments=wanted)
    assert FrameSegments(wanted, whole_steps=True).indices(video_of(*video)) == expected.tolist()


@pytest.mark.parametrize("whole_steps", [False, True])
@pytest.mark.parametrize("total", [2, 5, 512])
def test_of_a_video_with_fewer_frames_than_asked_for_each_is_read(total, whole_steps):
    segments = FrameSegments(513, whole_steps=whole_steps)
    assert segments.indices(video_of(total, 25.0)) == list(range(total))


@pytest.mark.parametrize("fps", [0.01, 99.0])
def test_a_rate_gives_one_frame_at_least_and_all_at_most(fps):
    assert len(FrameSegments(None, fps).indices(video_of(50, 25.0))) == {0.01: 1, 99.0: 50}[fps]


@pytest.fixture
def media():
    tokenizer = build_tokenizer((*TEXT_TOKENS, "<img>", "</img>", IMAGE_TOKEN))
    form = PromptForm("numbered", "none", TOKENS_PER_TILE)
    return InternVLMedia(OriginalProcessor(tokenizer, SIZE), form, FrameSegments(3), True, torch.float32)


def test_images_and_videos_come_in_the_order_of_the_prompt(media, stock_videos):
    """Pixels of each stand where the prompt has them, whichever is named first."""
    path = str(stock_videos["mlvu_dev"][0])
    image = Image.new("RGB", (SIZE, SIZE), (200, 10, 10))
    for before, behind in (("image", "video"), ("video", "image")):
        content = [{"type": before}, {"type": behind}, {"type": "text", "text": "What is it?"}]
        text = media.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = media(images=[image], videos=[path], text=text, min_patches=1, max_patches=1)
        (row,) = inputs["rows"]
        assert row.text == "What is it?"
        assert row.videos[0]["frames_indices"] == FrameSegments(3).indices(open_video(path))
        (token_video,), (token_frame,) = inputs["token_video"], inputs["token_frame"]
        context = media.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        owners = token_frame[inputs["input_ids"][0] == context].tolist()
        assert owners == ([-1, 0, 1, 2] if before == "image" else [0, 1, 2, -1])
        assert torch.equal(token_video >= 0, token_frame >= 0)
        pixels = inputs["pixel_values"]
        (at,) = (number for number, owner in enumerate(owners) if owner < 0)
        expected = media._processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixels[at], expected)
        frames = open_video(path).read(row.videos[0]["frames_indices"])
        assert torch.equal(pixels[[n for n in range(4) if n != at]], media._processor.frame_pixels(frames))


def test_a_large_image_is_as_many_tiles_as_fit_it(media):
    image = Image.new("RGB", (3 * SIZE, 2 * SIZE), (10, 200, 10))
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = media.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = media(images=[image], text=text, min_patches=1, max_patches=12)
    context = media.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert len(inputs["pixel_values"]) == 3 * 2 + 1  # and the whole of it, small
    assert int((inputs["input_ids"] == context).sum()) == 7 * TOKENS_PER_TILE
    assert (inputs["token_video"] == -1).all()
