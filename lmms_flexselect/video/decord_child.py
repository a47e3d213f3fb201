"""Run as a program of its own: frames of a video by decord, as bytes to the standard output.

Arguments: path, numbers of frames as a JSON list. First comes a line with the number of frames, height and width.
"""

from __future__ import annotations

import json
import os
import sys
import threading

_FRAMES_AT_ONCE = 16
_CLOSE = 2  # frames passed for each one wanted


def main(path: str, wanted: list[int]) -> None:
    """Write frames until all are written, or the process that asked for them is gone."""
    sys.path.pop(0)  # this folder, whose modules are not to be taken for others of their name
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(1)), daemon=True).start()
    import decord

    try:
        reader = decord.VideoReader(path)
        for start in range(0, len(wanted), _FRAMES_AT_ONCE):
            part = wanted[start : start + _FRAMES_AT_ONCE]
            first, last = part[0], part[-1]
            if last - first < _CLOSE * len(part):
                # Read with those between them: decord would look for each on its own.
                frames = reader.get_batch(range(first, last + 1)).asnumpy()[[index - first for index in part]]
            else:
                frames = reader.get_batch(part).asnumpy()
            if not start:
                sys.stdout.buffer.write(f"{len(reader)} {frames.shape[1]} {frames.shape[2]}\n".encode())
            sys.stdout.buffer.write(frames.tobytes())
            sys.stdout.buffer.flush()
    except Exception as error:
        sys.stderr.write(str(error))
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
