"""The needle checkpoints, loaded as a user would, and benchmark questions as their prompts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from lmms_flexselect import FrameSampling, Qwen2_5_VL, read_video
from lmms_flexselect.families.llava_video import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video_model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.needle import CHECKPOINTS, videos

PIXELS = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "\n{question}<|im_end|>\n<|im_start|>assistant\n",
)


class QwenCheckpoint:
    """Reads both frames of a temporal unit: four visual tokens."""

    folder = CHECKPOINTS / "qwen2_5_vl"
    columns = 2

    def __init__(self):
        self.model, self.report = AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True
        )
        self.family = Qwen2_5_VL(self.model.eval())
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.tokenizer = self.processor.tokenizer

    def video(self, path):
        return read_video({"video": str(path), **PIXELS}, FrameSampling(max_frames=1024, fps=2))

    def prompt(self, video, question):
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(
            text=[text], videos=[video.frames], video_metadata=[video.metadata], return_tensors="pt"
        )
        (prompt,) = self.family.prompts(inputs)
        return prompt


class LlavaCheckpoint:
    """Reads the first frame of a temporal unit, as one a second: four visual tokens and two newlines."""

    folder = CHECKPOINTS / "llava_vid"
    columns = 3

    def __init__(self):
        config = LlavaVideoConfig.from_checkpoint(str(self.folder))
        self.model, self.report = LlavaVideoForCausalLM.from_pretrained(
            self.folder, config=config, dtype=torch.float32, output_loading_info=True
        )
        self.family = LlavaVideo(self.model.eval())
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def video(self, path):
        return torch.from_numpy(videos.read_video(path)[::2])

    def prompt(self, video, question):
        before, behind = (self.tokenizer(text.format(question=question)).input_ids for text in TEMPLATE)
        ids = torch.tensor([[*before, VIDEO_TOKEN, *behind]])
        (prompt,) = self.family.prompts({"input_ids": ids, "videos": [video]})
        return prompt


@pytest.fixture(scope="module", params=[QwenCheckpoint, LlavaCheckpoint], ids=["qwen2_5_vl", "llava_vid"])
def checkpoint(request):
    return request.param()
