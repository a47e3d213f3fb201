"""Fifteen questions about one video: with what they have in common kept, and with everything done anew.

``OMP_NUM_THREADS=2 python benchmarks/questions.py`` on an otherwise idle machine. A LLaVA-Video with random weights
(the decoder of ``benchmarks/scoring.py``) reads a video file: decoding, vision tower, scoring, selection, and an answer
of 8 tokens. Both ways take turns, question by question, so that what else goes on disturbs them alike; what is kept and
answered is compared, too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scoring import A_FRAME, HEADS, HIDDEN, INNER, KV_HEADS, LAYER, LAYERS

from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo
from lmms_flexselect.families.llava_video.frames import read_llava_video
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from lmms_flexselect.method.flexselect import FlexSelect
from lmms_flexselect.needle.videos import write_video
from lmms_flexselect.runtime.store import VideoStore

PARTS = ("decode", "vision", "scoring", "answer")
QUESTION_TOKENS = 40


def build_model(seed: int = 0) -> Any:
    """A LLaVA-Video whose tower is small: 729 patches a frame, as the published ones."""
    torch.manual_seed(seed)
    decoder = {
        "vocab_size": 1000,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 131072,
        "mm_projector_type": "mlp2x_gelu",
    }
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 384,
        "patch_size": 14,
    }
    model = LlavaVideoForCausalLM(LlavaVideoConfig.from_original(decoder, tower)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class Run:
    """One way of answering.

    Attributes
    ----------
    seconds
        Of each part, question by question.
    """

    def __init__(self, model: Any, frames: int, store: VideoStore | None) -> None:
        self._family = LlavaVideo(model)
        self._family.store = store
        selector = self._family.reference_layer(LAYER)
        self._select = FlexSelect(selector, frames * A_FRAME // 16, round_budget=False)
        self._frames = frames
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, path: str, question: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept for a question, and its answer."""
        times = [time.perf_counter()]

        def done(name: str) -> None:
            times.append(time.perf_counter())
            self.seconds[name].append(times[-1] - times[-2])

        known = self._family.has_video(path)
        video = None if known else read_llava_video(path, self._frames, force_sample=True).frames
        done("decode")
        text = torch.randint(1, 999, (QUESTION_TOKENS,), generator=torch.Generator().manual_seed(question))
        ids = torch.cat([torch.arange(1, 15), torch.tensor([VIDEO_TOKEN]), text])[None]
        inputs = {"input_ids": ids, "videos": [video], "video_keys": [path], "pixels_omitted": [known]}
        (prompt,) = self._family.prompts(inputs)
        done("vision")
        selection = self._select(prompt)
        done("scoring")
        (new,) = self._family.generate([selection.prompt], max_new_tokens=8, do_sample=False)
        done("answer")
        return selection.keep, new


def main() -> None:
    """Print a table and the ratios, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--questions", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("questions.json"))
    arguments = parser.parse_args()
    model, store = build_model(), VideoStore(cpu_gib=4)
    kept, anew = Run(model, arguments.frames, store), Run(model, arguments.frames, None)
    draw = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        for name, length in (("warm", 2 * arguments.frames), ("video", 2 * arguments.frames)):
            frames = draw.integers(0, 256, (length, 45, 80, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
            write_video(f"{folder}/{name}.mp4", frames)
        Run(model, arguments.frames, None)(f"{folder}/warm.mp4", 0)
        for question in range(arguments.questions):
            (keep, answer), (wanted_keep, wanted) = (run(f"{folder}/video.mp4", question) for run in (kept, anew))
            assert torch.equal(keep, wanted_keep), f"question {question} keeps other tokens"
            assert torch.equal(answer, wanted), f"question {question} has another answer"
    scoring = kept.seconds["scoring"]
    whole = {name: sum(map(sum, run.seconds.values())) for name, run in (("kept", kept), ("anew", anew))}
    found = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "frames": arguments.frames,
        "questions": arguments.questions,
        "seconds": {name: dict(run.seconds) for name, run in (("kept", kept), ("anew", anew))},
        "store_mib": store.cpu_bytes / 2**20,
        "further_scoring_to_first": median(scoring[1:]) / scoring[0],
        "further_scoring_to_first_mean": sum(scoring[1:]) / (len(scoring) - 1) / scoring[0],
        "whole_run": whole["kept"] / whole["anew"],
    }
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{arguments.frames} frames, {arguments.questions} questions, {torch.get_num_threads()} threads; seconds")
    print("  " + " " * 24 + "".join(f"{part:>10}" for part in PARTS))
    for name, run in (("kept", kept), ("anew", anew)):
        print(f"  {name}, first question    " + "".join(f"{run.seconds[part][0]:10.3f}" for part in PARTS))
        print(f"  {name}, further (median)  " + "".join(f"{median(run.seconds[part][1:]):10.3f}" for part in PARTS))
    print(f"  scoring of a further question to the first's: {found['further_scoring_to_first']:.3f} (median),", end=" ")
    print(f"{found['further_scoring_to_first_mean']:.3f} (mean)")
    print(f"  whole run: {whole['kept']:.1f} s to {whole['anew']:.1f} s, {found['whole_run']:.3f}")
    print(f"  kept of the video: {found['store_mib']:.0f} MiB; the same tokens kept and the same answers")


if __name__ == "__main__":
    main()
