"""The three families with random weights, at the published shapes or scaled down, and inputs for them; no download."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scoring import HEADS, HIDDEN, INNER, KV_HEADS, LAYERS
from torch import Tensor
from transformers import InternVLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from lmms_flexselect.cost.shape import ModelShape, SelectorShape
from lmms_flexselect.families.grid_frames import FrameSampling, read_video
from lmms_flexselect.families.internvl.config import read_config
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.processor import FrameSegments, OriginalProcessor, video_pixels
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video.frames import read_llava_video
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.families.qwen2_5_vl.family import Qwen2_5_VL
from lmms_flexselect.families.spec import family, load
from lmms_flexselect.lite.checkpoint import module_config
from lmms_flexselect.lite.networks import network_of
from lmms_flexselect.loading import checkpoint_config
from lmms_flexselect.presets import preset
from lmms_flexselect.tools.doctor.checkpoints import published, write_stand_in

NAMES = {
    "llava_vid": ("lmms-lab/LLaVA-Video-7B-Qwen2", "yunzhuyunzhu/flexselect_llava_video"),
    "qwen2_5_vl": ("Qwen/Qwen2.5-VL-7B-Instruct", "yunzhuyunzhu/flexselect_qwen2.5vl"),
    "internvl_hf": ("OpenGVLab/InternVL2_5-8B", "yunzhuyunzhu/flexselect_internvl2.5"),
}
SCALES = ("published", "small")
BEFORE = 14  # text tokens before the video; there is nothing between InternVL's frames
# The small ones: the decoder of benchmarks/scoring.py, towers of 64 patches a frame, a selector a quarter as wide.
_VOCABULARY = 10_000
_TEXT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
}
_TOWER = {"hidden_size": 64, "intermediate_size": 240, "num_attention_heads": 4, "image_size": 112, "patch_size": 14}
_SMALL: dict[str, dict[str, Any]] = {
    "llava_vid": {**_TEXT, "vision_config": {**_TOWER, "num_hidden_layers": 7}},
    "qwen2_5_vl": {
        **_TEXT,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "image_token_id": _VOCABULARY - 2,
        "video_token_id": _VOCABULARY - 1,
        "vision_config": {
            "depth": 8,
            "hidden_size": 64,
            "intermediate_size": 171,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1, 3, 5, 7],
        },
    },
    "internvl_hf": {
        "force_image_size": 112,
        "llm_config": {**published()[NAMES["internvl_hf"][0]]["llm_config"], **_TEXT},
        "vision_config": {
            **published()[NAMES["internvl_hf"][0]]["vision_config"],
            **_TOWER,
            "num_hidden_layers": 6,
        },
        "added_tokens": {"<IMG_CONTEXT>": _VOCABULARY - 1},
    },
}
_SMALL_SELECTOR = {
    **_TEXT,
    "hidden_size": 64,
    "intermediate_size": 348,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
}
_SMALL_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
_IMG, _IMG_END = 1, 2  # ids that stand for InternVL's marks; all other text is above


@dataclass
class VideoLLM:
    """A model with random weights, which reads videos.

    Attributes
    ----------
    name
        Upstream's name of the family.
    model, selector
        Modules: the VideoLLM, and a FlexSelect-Lite selector for it.
    layer
        Reference layer.
    budget
        Visual tokens kept; None for 32 units' worth.
    pixels
        Bounds of a frame's, where the family has any.
    """

    name: str
    model: Any
    selector: Any
    layer: int
    budget: int | None
    pixels: Mapping[str, int]

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    def family(self, with_selector: bool) -> Any:
        """Reads the model; for the selector too, if asked."""
        if self.name == "llava_vid":
            family: Any = LlavaVideo(self.model)
        elif self.name == "qwen2_5_vl":
            family = Qwen2_5_VL(self.model)
        else:
            marks = (_IMG, _IMG_END)
            family = InternVL(self.model, marks, selector_mark_ids=(self.config.image_token_id, *marks))
        family.selector = self.selector if with_selector else None
        return family

    def shape(self, with_selector: bool, grid: Sequence[int] | None) -> ModelShape:
        """What the work follows from, for frames of `grid` patches where the family reads frames of any size."""
        own = SelectorShape.of(type(self.selector), self.selector.config) if with_selector else None
        shape = load(family(self.name).shape)(self.config, self.pixels, grid=grid)
        return dataclasses.replace(shape, selector=own)

    def inputs(self, path: str, frames: int, question: Tensor) -> dict[str, Any]:
        """What the family's `prompts` takes, of a file: as in a run, but for the text, which is random.

        Parameters
        ----------
        path
            Of a video of `frames` frames or more.
        frames
            To read.
        question
            ``(tokens,)`` int64, behind the video.
        """
        vision = self.config.vision_config
        before = torch.arange(3, 3 + BEFORE)
        if self.name == "llava_vid":
            clip = read_llava_video(path, frames, force_sample=True, size=vision.image_size)
            ids = torch.cat([before, torch.tensor([VIDEO_TOKEN]), question])
            return {"input_ids": ids[None], "videos": [clip.frames]}
        if self.name == "qwen2_5_vl":
            seen = read_video({"video": path, **self.pixels}, FrameSampling(frames))
            made = Qwen2VLVideoProcessor()(
                videos=[seen.frames], do_resize=False, do_sample_frames=False, return_tensors="pt"
            )
            grid = made["video_grid_thw"]
            tokens = int(grid[0].prod()) // vision.spatial_merge_size**2
            ids = torch.cat([before, torch.full((tokens,), self.config.video_token_id), question])
            return {"input_ids": ids[None], "pixel_values_videos": made["pixel_values_videos"], "video_grid_thw": grid}
        processor = OriginalProcessor(None, vision.image_size[0])
        pixels = video_pixels(processor, path, FrameSegments(frames), self.model.dtype)
        frame = torch.tensor([_IMG, *[self.config.image_token_id] * self.config.image_seq_length, _IMG_END])
        ids = torch.cat([before, frame.repeat(len(pixels)), question])[None]
        video = torch.full_like(ids, -1)
        of_frame = video.clone()
        video[:, BEFORE : -len(question)] = 0
        of_frame[:, BEFORE : -len(question)] = torch.arange(len(pixels)).repeat_interleave(len(frame))
        known = {"token_video": video, "token_frame": of_frame, "selector_video": video, "selector_frame": of_frame}
        return {"input_ids": ids, "selector_ids": ids, "pixel_values": pixels, **known}


def build(name: str, scale: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> VideoLLM:
    """One family's, made where it is to lie.

    Parameters
    ----------
    name
        Upstream's name of the family.
    scale
        One of `SCALES`.
    """
    checkpoint, of_selector = NAMES[name]
    small = scale == "small"
    with TemporaryDirectory() as folder:
        place = str(write_stand_in(checkpoint, Path(folder), **(_SMALL[name] if small else {})))
        config = _read(name, place)
    words = {**published()[of_selector], **(_SMALL_SELECTOR if small else {})}
    if small and "rope_scaling" in words:
        words["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    torch.manual_seed(seed)
    model_class = {
        "llava_vid": LlavaVideoForCausalLM,
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
        "internvl_hf": InternVLForConditionalGeneration,
    }[name]
    with device:
        model = model_class._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        llm = VideoLLM(name, model, None, 0, 0, {})
        selector_config = module_config(words, llm.family(False).tower)
        llm.selector = network_of(name)._from_config(selector_config, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.pad_token_id = 0
    fill = preset(name, checkpoint, None, config.get_text_config().num_hidden_layers)
    llm.layer, llm.budget = fill["reference_layer"], None if small else fill["token_budget"]
    if name == "qwen2_5_vl":
        llm.pixels = _SMALL_PIXELS if small else {bound: fill[bound] for bound in ("min_pixels", "max_pixels")}
    return llm


def _read(name: str, place: str) -> Any:
    if name == "llava_vid":
        return LlavaVideoConfig.from_checkpoint(place)
    return read_config(place) if name == "internvl_hf" else checkpoint_config(place, name)
