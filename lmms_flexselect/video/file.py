"""What is wrong with a video file, seen from outside."""

from __future__ import annotations

import os
import stat

_HEAD = 512
_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
FileIdentity = tuple[int, int, int, int]


def file_complaint(path: str) -> str | None:
    """What is wrong with a video file without opening it as one, and what to do about it; None if nothing is."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return f"is a broken link to {os.readlink(path)}; put the video there, or link to where it is"
        return "no such video file"
    except OSError as error:
        return f"cannot be looked at ({error.strerror}); make it and its folders readable for this user"
    except ValueError:  # a null byte
        return "is no path of a file"
    if not stat.S_ISREG(found.st_mode):
        return f"is {_NO_FILES.get(stat.S_IFMT(found.st_mode), 'something else')}, not a video file"
    if not found.st_size:
        return "the video file is empty"
    try:
        with open(path, "rb") as file:
            return _content_complaint(file.read(_HEAD))
    except OSError as error:
        return f"cannot be opened ({error.strerror}); make it readable for this user"


def _content_complaint(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the video that it stands for; run git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "is a web page (HTML or XML), not a video, as a failed download leaves it; download it again"
    if text.startswith((b"#extm3u", b"ffconcat", b"[playlist]")):
        return "is a playlist, not a video; give a file that holds the pictures themselves"
    return None


def file_identity(path: str) -> FileIdentity | None:
    """What changes when a file is written to or replaced; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def change_complaint(path: str, before: FileIdentity | None) -> str | None:
    """What happened to a file since `before` was asked for, or None."""
    now = file_identity(path)
    if now == before:
        return None
    if now is None:
        return "vanished while it was read; put it back and run again"
    return "changed while it was read; let what writes it finish, then run again"
