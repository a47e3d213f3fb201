"""What decoding ahead saves where decoding and computing take equally long.

``python benchmarks/prefetch.py --compute sleep`` (or ``torch``, or ``cuda`` where there is a GPU). Videos are made, and
read by the package's own reader and `Prefetcher`. What stands for the model:

``sleep``
    Waits. That is what a GPU looks like to the CPU, but for what it takes to feed it.
``torch``
    Multiplies matrices on one thread, so it competes with the decoder for the cores.
``cuda``
    Multiplies matrices on the GPU.

Its length is set to that of reading a video, both measured alone. ``serial`` is ``prefetch_videos=0``. Medians of
several rounds, in which all variants take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch

from lmms_flexselect.families.llava_video.frames import read_llava_video
from lmms_flexselect.video.prefetch import Prefetcher
from lmms_flexselect.video.reading import Backend


def moving_texture(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A texture that drifts under noise: ``(frames, height, width, 3)`` uint8, no easier to decode than a film."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (height // 16 + 8, width // 16 + 8, 3), dtype=np.uint8)
    ground = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    video = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        moved = ground[t % 64 : t % 64 + height, (2 * t) % 64 : (2 * t) % 64 + width]
        video[t] = np.clip(moved.astype(np.int16) + draw.integers(-12, 12, (height, width, 1)), 0, 255)
    return video


def write_film(path: str, frames: np.ndarray, fps: int) -> None:
    """As films are found: H.264 by x264's own settings, with key frames far between."""
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Of one call: the median of several."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return median(spent)


def stand_in(kind: str, length: float) -> Callable[[], None]:
    """Something that takes `length` seconds when alone."""
    if kind == "sleep":
        return lambda: time.sleep(length)
    device, size = ("cuda", 4096) if kind == "cuda" else ("cpu", 512)
    matrix = torch.randn(size, size, device=device)

    def multiply(times: int) -> None:
        product = matrix
        for _ in range(times):
            product = product @ matrix
            product /= product.norm()
        if kind == "cuda":
            torch.cuda.synchronize()

    multiply(20)
    one = seconds(lambda: multiply(50)) / 50
    return lambda: multiply(max(1, round(length / one)))


def run(read: Callable[[str], object], paths: list[str], compute: Callable[[], None], ahead: int) -> float:
    """Seconds for all videos, each read and then computed on."""
    prefetcher = Prefetcher(read, ahead)
    start = time.perf_counter()
    prefetcher.plan(paths)
    for path in paths:
        prefetcher.get(path)
        compute()
    spent = time.perf_counter() - start
    prefetcher.close()
    return spent


def main() -> None:
    """Print a table and, if asked, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute", choices=("sleep", "torch", "cuda"), default="sleep")
    parser.add_argument("--decoder", choices=("pyav", "decord"), default="pyav")
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=64, help="read of each video")
    parser.add_argument("--length", type=int, default=20, help="of a video, in seconds, at 24 frames a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{n}.mp4") for n in range(asked.videos)]
        for n, path in enumerate(paths):
            write_film(path, moving_texture(n, 24 * asked.length, 360, 640), fps=24)

        def read(path: str) -> object:
            return read_llava_video(path, asked.frames, force_sample=True, backend=Backend(asked.decoder)).frames

        reading = seconds(lambda: read(paths[0]), 5)
        compute = stand_in(asked.compute, reading)
        computing = seconds(compute, 5)
        times: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for _ in range(asked.rounds):
            for ahead, spent in times.items():
                spent.append(run(read, paths, compute, ahead))
    serial = median(times[0])
    rows = [{"prefetch_videos": a, "seconds": median(t), "of_serial": median(t) / serial} for a, t in times.items()]
    where = torch.cuda.get_device_name() if asked.compute == "cuda" else f"{len(os.sched_getaffinity(0))} cores"
    print(f"{asked.videos} videos, {asked.decoder}, {asked.compute} on {where}")
    print(f"alone: reading {reading:.3f} s, computing {computing:.3f} s a video")
    for row in rows:
        print("prefetch_videos={prefetch_videos}: {seconds:7.2f} s, {of_serial:.2f} of serial".format(**row))
    if asked.json:
        setting = {**vars(asked), "json": str(asked.json), "where": where, "reading": reading, "computing": computing}
        asked.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
