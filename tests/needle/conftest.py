"""The needle checkpoints, loaded as a user would, and benchmark questions as their prompts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from lmms_flexselect import FrameSampling, Qwen2_5_VL, read_video
from lmms_flexselect.families.chatml import chatml
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.internvl.prompt import spell_out
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.needle import CHECKPOINTS, videos

PIXELS = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "\n{question}<|im_end|>\n<|im_start|>assistant\n",
)


class QwenCheckpoint:
    """Reads both frames of a temporal unit: four visual tokens."""

    folder = CHECKPOINTS / "qwen2_5_vl"
    grid = (2, 2)
    unit_tokens, quadrants = 4, (0, 1, 2, 3)

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
    grid = (2, 3)
    unit_tokens, quadrants = 6, (0, 1, 3, 4)

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


class InternVLCheckpoint:
    """Reads the second frame of a temporal unit, the middle one of a second: four visual tokens between two marks."""

    folder = CHECKPOINTS / "internvl_hf"
    grid = (2, 2)
    unit_tokens, quadrants = 6, (1, 2, 3, 4)

    def __init__(self):
        self.model, self.report = AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True
        )
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.tokenizer = self.processor.tokenizer
        marks = (self.processor.start_image_token_id, self.processor.end_image_token_id)
        self.family = InternVL(self.model.eval(), marks, self.model.config.flexselect["image_marks"])

    def video(self, path):
        frames = torch.from_numpy(videos.read_video(path)[1::2]).permute(0, 3, 1, 2)
        return self.processor.video_processor([frames], return_tensors="pt")["pixel_values_videos"][0]

    def prompt(self, video, question):
        text = chatml([("user", f"<video>\n{question}"), ("assistant", None)], system=None)
        tokens = spell_out(text, [], [len(video)], self.tokenizer, 4, self.model.config.flexselect["frame_labels"])
        inputs = {"input_ids": tokens.ids, "token_video": tokens.video, "token_frame": tokens.frame}
        inputs |= {"selector_ids": tokens.ids, "selector_video": tokens.video, "selector_frame": tokens.frame}
        batch = {name: row[None] for name, row in inputs.items()}
        (prompt,) = self.family.prompts({**batch, "pixel_values": video})
        return prompt


CHECKPOINT_CLASSES = (QwenCheckpoint, LlavaCheckpoint, InternVLCheckpoint)


@pytest.fixture(scope="module", params=CHECKPOINT_CLASSES, ids=[each.folder.name for each in CHECKPOINT_CLASSES])
def checkpoint(request):
    return request.param()
