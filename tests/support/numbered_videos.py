"""Videos whose frames carry their own number, of every kind that data sets have; ffmpeg itself says what they show."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

HEIGHT, WIDTH = 96, 128
_CELLS = 16  # of the upper half: 2 rows of 8, one bit each

_X264 = "-c:v libx264 -preset veryfast -crf 16 -pix_fmt yuv420p -bf 3"
X264 = f"{_X264} -g 24 -keyint_min 24 -sc_threshold 0"
OPEN = f"{_X264} -x264-params open-gop=1:keyint=24:min-keyint=24:scenecut=0"
_X265 = "-c:v libx265 -preset ultrafast -crf 16 -pix_fmt yuv420p"
X265 = f"{_X265} -x265-params log-level=error:keyint=24:bframes=3:open-gop=1"
SOUND = "-f lavfi -i sine=440:duration=6"

# Name: options of the encoder, or a command that makes it of other files.
ENCODED = {
    "plain.mp4": X264,
    "open.mp4": OPEN,
    "hevc.mkv": X265,
    "bframes.avi": "-c:v mpeg4 -q:v 2 -g 24 -bf 2",
    "mpeg2.mpg": "-c:v mpeg2video -q:v 2 -g 12 -bf 2",
    "vp9.webm": "-c:v libvpx-vp9 -b:v 2M -g 24 -deadline good -cpu-used 8",
    "motion.gif": "",
    "variable.mkv": f"-vf select='not(mod(n\\,3))+gt(n\\,60)' -vsync vfr {X264}",
    "variable.mp4": f"-vf select='lt(n\\,20)+gt(n\\,60)' -vsync vfr {X264}",
    "refresh.mp4": "-c:v libx264 -crf 16 -pix_fmt yuv420p -intra-refresh 1 -g 24",
}
DERIVED = {
    "cut.mp4": "-ss 1.3 -i plain.mp4 -c copy",
    "cut.ts": "-ss 1.3 -i plain.mp4 -c copy",
    "cut_open.mp4": "-ss 1.3 -i open.mp4 -c copy",
    "plain.ts": "-i plain.mp4 -c copy",
    "plain.flv": "-i plain.mp4 -c copy",
    "raw.h264": "-i plain.mp4 -c copy -bsf:v h264_mp4toannexb",
    "h264.avi": "-i plain.mp4 -c copy",
    "open.mkv": "-i open.mp4 -c copy",
    "hevc.ts": "-i hevc.mkv -c copy",
    "late_start.mkv": "-i plain.mp4 -c copy -output_ts_offset 100",
    "late_picture.mp4": f"-itsoffset 2 -i plain.mp4 {SOUND} -map 0:v -map 1:a -c:v copy",
    "long_sound.mkv": f"-i plain.mp4 {SOUND} -map 0:v -map 1:a -c:v copy",
    "fragments.mp4": "-i plain.mp4 -c copy -movflags frag_keyframe+empty_moov",
    "turned.mp4": "-i plain.mp4 -c copy -metadata:s:v:0 rotate=90",
    "clock.ts": "-i plain.mp4 -c copy -output_ts_offset 95442",
}
JOINED = {"joined.ts": ("plain.ts", "cut.ts")}
KINDS = (*ENCODED, *DERIVED, *JOINED, "slow.mp4")
FRAMES = 96


def picture(number: int) -> np.ndarray:
    """Its number in cells of black and white above, its complement below: ``(height, width, 3)`` uint8."""
    bits = np.array([number >> place & 1 for place in range(8)])
    rows = np.array([bits, 1 - bits, 1 - bits[::-1], bits[::-1]]) * 180 + 30
    return np.repeat(np.kron(rows, np.ones((HEIGHT // 4, WIDTH // 8)))[..., None], 3, 2).astype(np.uint8)


def number_of(frame: np.ndarray) -> int | None:
    """The number that a frame carries, whatever its size; None of one that is garbage or turned."""
    height, width = frame.shape[:2]
    grey = frame.astype(float).mean(-1)
    ys, xs = ((np.arange(n) + 0.5) / n for n in (4, 8))
    cells = grey[(ys * height).astype(int)][:, (xs * width).astype(int)] > 120
    agree = (cells[0] != cells[1]).all() and (cells[0] == cells[3][::-1]).all() and (cells[1] == cells[2][::-1]).all()
    return int(sum(int(bit) << place for place, bit in enumerate(cells[0]))) if agree else None


def _ffmpeg() -> str:
    if (found := shutil.which("ffmpeg")) is not None:
        return found
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def _run(words: str, folder: Path, data: bytes | None = None) -> bytes:
    command = [_ffmpeg(), "-v", "error", "-y", *words.split()]
    return subprocess.run(command, cwd=folder, input=data, check=True, capture_output=True).stdout


def make(folder: Path) -> None:
    """All `KINDS` of videos."""
    raw = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -i -"
    frames = b"".join(picture(number).tobytes() for number in range(FRAMES))
    for name, options in ENCODED.items():
        _run(f"-r 25 {raw} {options} {name}", folder, frames)
    _run(f"-r 1/5 {raw} {X264} slow.mp4", folder, frames[: 12 * HEIGHT * WIDTH * 3])
    for name, options in DERIVED.items():
        _run(f"{options} {name}", folder)
    for name, parts in JOINED.items():
        (folder / name).write_bytes(b"".join((folder / part).read_bytes() for part in parts))


def shown(path: Path) -> list[int | None]:
    """The numbers of all frames that ffmpeg shows, in order."""
    data = _run(
        f"-i {path.name} -an -vsync passthrough -vf scale=32:16:flags=neighbor -pix_fmt rgb24 -f rawvideo -",
        path.parent,
    )
    return [number_of(frame) for frame in np.frombuffer(data, np.uint8).reshape(-1, 16, 32, 3)]
