"""Training batches for the needle model: what its processor would give, without a video file for every sample."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLProcessor

from lmms_flexselect.families import mrope
from lmms_flexselect.families.mrope import VisionBlock
from lmms_flexselect.needle.benchmark import question
from lmms_flexselect.needle.videos import FRAMES_PER_UNIT, QUADRANTS, NeedleVideo

IGNORED = -100
_PATCH = 14


def conversation(video: NeedleVideo) -> list[dict[str, object]]:
    """A chat about every needle of a video, the video in its first turn; the more answers, the denser the loss."""
    messages: list[dict[str, object]] = []
    for needle in video.needles:
        content: list[dict[str, str]] = [] if messages else [{"type": "video"}]
        content.append({"type": "text", "text": question(needle.colour)})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": needle.shape})
    return messages


def token_ids(videos: list[NeedleVideo], processor: Qwen2_5_VLProcessor) -> torch.Tensor:
    """Token ids (batch, tokens) of the videos' conversations. Videos must agree in length and number of needles."""
    texts = processor.apply_chat_template([conversation(video) for video in videos], tokenize=False)
    placeholder = processor.video_token
    texts = [text.replace(placeholder, placeholder * QUADRANTS * videos[0].units) for text in texts]
    return torch.tensor(processor.tokenizer(texts).input_ids)


def answer_labels(ids: torch.Tensor, processor: Qwen2_5_VLProcessor, scaffold: bool) -> torch.Tensor:
    """Labels (batch, tokens): the assistant's shape word; with a scaffold also a hint and the end of its turn.

    The hint asks for the shape already where the user's colour word stands. Seven tokens later, where the answer
    belongs, colours are too far from the loss for so small a model to learn to match them in reasonable time.
    """
    start, assistant = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "assistant"])
    # A turn reads `red glyph ? <|im_end|> \n <|im_start|> assistant \n ring <|im_end|>`; its anchor is `<|im_start|>`.
    rows, anchors = ((ids[:, :-1] == start) & (ids[:, 1:] == assistant)).nonzero(as_tuple=True)
    labels = torch.full_like(ids, IGNORED)
    shapes = ids[rows, anchors + 3]
    labels[rows, anchors + 3] = shapes
    if scaffold:
        labels[rows, anchors - 4] = shapes
        labels[rows, anchors + 4] = ids[rows, anchors + 4]
    return labels


def imitate_codec(frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blurs, shifts and roughens pixels (frames, 3, 56, 56) in 0..255, a little more than H.264 does.

    Encoding each training video would cost as much time as the training step itself.
    """
    blur, noise, shift = torch.rand(3, generator=generator).tolist()
    smooth = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    frames = frames.lerp(smooth, 0.6 * blur) + 6 * (shift - 0.5)
    frames = frames + 8 * noise * torch.randn(frames.shape, generator=generator)
    return frames.round().clamp(0, 255)


def patchify(frames: torch.Tensor, processor: Qwen2_5_VLProcessor) -> torch.Tensor:
    """What the video processor makes of units whose two frames are equal: (units, 3, 56, 56) -> (16 * units, 1176)."""
    video = processor.video_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (video.image_mean, video.image_std))
    pixels = (frames * video.rescale_factor - mean) / std
    # Rows and columns split into (quadrant, patch, pixel); patches of one quadrant lie side by side.
    patches = pixels.view(len(frames), 3, 2, 2, _PATCH, 2, 2, _PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return patches.unsqueeze(6).expand(*patches.shape[:6], FRAMES_PER_UNIT, -1, -1).reshape(-1, 3 * 2 * _PATCH * _PATCH)


def published_positions(ids: torch.Tensor, video_token_id: int, step: float = 2.0) -> torch.Tensor:
    """Positions (3, batch, tokens) by Qwen2.5-VL's published rule, for prompts that hold one video at the same place.

    `step` is the temporal distance of two units: tokens per second times seconds per unit, 2 x 1 s in the benchmark.
    """
    columns = (ids[0] == video_token_id).nonzero().squeeze(-1)
    block = VisionBlock(columns, (len(columns) // QUADRANTS, 2, 2), step, is_video=True)
    return mrope.published_positions(ids.shape[1], [block])[:, None].expand(-1, len(ids), -1)


def training_batch(
    processor: Qwen2_5_VLProcessor,
    rng: np.random.Generator,
    size: int,
    units: int,
    needles: int,
    max_step: float,
    scaffold: bool,
) -> dict[str, torch.Tensor]:
    """Draws `size` new videos; returns the model's inputs and labels. Temporal steps go log-uniformly from 0.5 up."""
    videos = [NeedleVideo.draw(int(seed), units, needles) for seed in rng.integers(2**62, size=size)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pixels = torch.from_numpy(np.concatenate([video.unit_frames() for video in videos])).permute(0, 3, 1, 2).float()
    ids = token_ids(videos, processor)
    step = math.exp(rng.uniform(math.log(0.5), math.log(max_step)))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": published_positions(ids, processor.video_token_id, step),
        "pixel_values_videos": patchify(imitate_codec(pixels, generator), processor),
        "video_grid_thw": torch.tensor([[units, 4, 4]] * size),
        "labels": answer_labels(ids, processor, scaffold),
    }
