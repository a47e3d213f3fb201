"""Processor time and memory of reading one long video: this package's reader, decord, and ``ffmpeg -vf fps``.

Makes the files itself (a clip of noise and motion, repeated without encoding it anew), reads each in a process of its
own, in turns, and prints a table. Needs the ``ffmpeg`` program.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

FPS = 24
CLIP_SECONDS = 60
# Height, width, seconds between key frames, frames that are read.
CASES = {
    "720p, key frames 10 s apart": (720, 1280, 10, 512),
    "720p, key frames 2 s apart": (720, 1280, 2, 512),
    "1080p, key frames 10 s apart": (1080, 1920, 10, 1024),
}
SIZE = 384


def write(path: Path, height: int, width: int, gop: int, seconds: int) -> None:
    """A video of so many seconds: a minute of moving picture with grain, over and over."""
    clip = path.with_name(f"clip_{path.name}")
    source = f"testsrc2=size={width}x{height}:rate={FPS}:duration={min(seconds, CLIP_SECONDS)},noise=alls=4:allf=t"
    keys = f"-g {gop * FPS} -keyint_min {gop * FPS}"
    encoder = f"-c:v libx264 -preset veryfast -b:v {height * height // 200}k -pix_fmt yuv420p {keys}"
    quiet = ["ffmpeg", "-v", "error", "-y"]
    subprocess.run([*quiet, "-f", "lavfi", "-i", source, *encoder.split(), "-sc_threshold", "0", clip], check=True)
    loops = str(max(0, seconds // CLIP_SECONDS - 1))
    subprocess.run([*quiet, "-stream_loop", loops, "-i", clip, "-c", "copy", path], check=True)
    clip.unlink()


def read_ours(path: str, count: int) -> None:
    """By this package, resized as LLaVA-Video does."""
    from lmms_flexselect.families.llava_video.frames import read_llava_video

    read_llava_video(path, count, force_sample=True, size=SIZE)


def read_decord(path: str, count: int) -> None:
    """By decord, as this package did before it had a reader of its own."""
    import decord
    import torch

    from lmms_flexselect.families.pixels import resize_frames

    reader = decord.VideoReader(path)
    indices = np.linspace(0, len(reader) - 1, count, dtype=int).tolist()
    parts = (indices[start : start + 32] for start in range(0, count, 32))
    torch.cat([resize_frames(torch.from_numpy(reader.get_batch(part).asnumpy()), SIZE) for part in parts])


def read_ffmpeg(path: str, count: int, seconds: int) -> None:
    """By the program, as many frames, thrown away."""
    filters = f"fps={count}/{seconds},scale={SIZE}:{SIZE}:flags=bicubic"
    command = ["ffmpeg", "-v", "error", "-i", path, "-an", "-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def child(how: str, path: str, count: int, seconds: int) -> None:
    """Read, and print the processor seconds and the peak of memory above that before it, in GiB."""
    import decord  # noqa: F401
    import torch

    import lmms_flexselect.families.llava_video.frames  # noqa: F401

    torch.set_num_threads(1)
    before, peak = _seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if how == "ffmpeg":
        read_ffmpeg(path, count, seconds)
    else:
        (read_ours if how == "ours" else read_decord)(path, count)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(json.dumps({"processor": _seconds() - before, "gib": grown / 2**20}))


def _seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600, help="length of the videos")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the videos are kept; a temporary folder if none is given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{asked.seconds} s of H.264, {len(os.sched_getaffinity(0))} cores, {asked.rounds} round(s)")
        for name, (height, width, gop, count) in CASES.items():
            path = folder / f"{height}_{gop}_{asked.seconds}.mp4"
            if not path.exists():
                write(path, height, width, gop, asked.seconds)
            found: dict[str, list[dict[str, float]]] = {"ours": [], "decord": [], "ffmpeg": []}
            for _ in range(asked.rounds):
                for how, results in found.items():
                    command = [sys.executable, __file__, "--child", how, str(path), str(count), str(asked.seconds)]
                    made = subprocess.run(command, check=True, capture_output=True, text=True)
                    results.append(json.loads(made.stdout.splitlines()[-1]))
            middle = {how: median(each["processor"] for each in results) for how, results in found.items()}
            print(f"{name}, {count} frames ({path.stat().st_size / 2**20:.0f} MiB)")
            for how, results in found.items():
                ratio = middle["ours"] / middle[how]
                gib = max(each["gib"] for each in results)
                memory = "" if how == "ffmpeg" else f", {gib:.2f} GiB more"
                print(
                    f"  {how:8} {middle[how]:8.1f} s of processor, ours is {ratio:.2f} of it{memory}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
