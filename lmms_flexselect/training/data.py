"""Training data of FlexSelect-Lite: files of conversations about videos, and lists of such files."""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import OptionError
from lmms_flexselect.training.data_files import digest, entries_of, taken
from lmms_flexselect.video.file import file_complaint

KINDS = ("caption", "open_ended", "multiple_choice")

# What the paper's training set calls them in names of files (cap, oe, mc) and of the hub's folders (multi_choice, ...).
_KIND_OF_WORD = dict.fromkeys(("cap", "caption", "captions"), "caption")
_KIND_OF_WORD |= dict.fromkeys(("oe", "ended"), "open_ended") | dict.fromkeys(("mc", "choice"), "multiple_choice")
_OPTIONS = re.compile(
    r"^ *\(?A[.):].*\n *\(?B[.):]|\boption.?s letter\b|\bletter (?:of the correct|followed by)\b", re.MULTILINE
)
_MARK = re.compile(r"(?:\s*<(?:image|video)>)+\s*")


@dataclass(frozen=True, slots=True)
class Sample:
    """What is asked about a video.

    Attributes
    ----------
    id
        Its own, or the video's where it has none, and a digest of what it says: the data set's own ids repeat within
        its files and between them. The same question about the same video is called the same whatever is read with
        it and wherever the videos lie, and no two samples are.
    video
        Its path.
    question, answer
        One turn of the conversation, without the mark that stands for the video.
    source
        The data set's name for where it comes from, else the name of its file.
    kind
        One of `KINDS`.
    """

    id: str
    video: str
    question: str
    answer: str
    source: str
    kind: str


@dataclass(frozen=True)
class Reading:
    """The samples, and how many items of the files are not among them, by reason."""

    samples: list[Sample]
    left_out: dict[str, int]


def read_samples(
    path: str | Path, video_root: str | Path, share: float = 1.0, kinds: Collection[str] = (), seed: int = 0
) -> Reading:
    """Read a training set.

    A conversation of several turns gives one sample, of a turn drawn by `seed`: a selector is asked one question at a
    time, as in evaluation, and a video shall not weigh more because more was said about it.

    Parameters
    ----------
    path
        ``.json`` or ``.jsonl`` of conversations, or a ``.yaml`` that lists such files (relative to itself),
        each with a ``sampling_strategy`` and a ``data_folder`` or ``video_folder``. Braces name several files at once,
        ``{cap,oe}.json``; a strategy holds for all of them together.
    video_root
        Folder that the videos' paths, and the YAML's folders, are relative to.
    share
        Of the samples to keep, after everything else. A smaller share lies within a larger one.
    kinds
        Which of `KINDS` to keep; all by default.
    seed
        Of the turns, of the ``random`` strategy and of the share.

    Returns
    -------
    Reading
        In an order drawn by `seed`, in which neither the files' nor the items' own shows.

    Raises
    ------
    OptionError
        If an argument is out of range, a file cannot be read or has another layout, or nothing is left.
    """
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise OptionError(f"kinds={unknown[0]}: must be among {', '.join(KINDS)}")
    if not 0 < share <= 1:
        raise OptionError(f"share={share}: must be greater than 0 and at most 1")
    samples: list[Sample] = []
    left_out: Counter[str] = Counter()
    found: Counter[str] = Counter()  # samples by kind
    alike: Counter[str] = Counter()  # by id, until told apart
    for entry in entries_of(Path(path)):
        for file, item in taken(entry, seed, left_out):
            turns = _turns(item)
            if reason := _unsuited(item, turns):
                left_out[reason] += 1
                continue
            sample = _sample(file, item, turns, (str(video_root), entry.folder), seed, alike)
            found[sample.kind] += 1
            if kinds and sample.kind not in kinds:
                left_out["kind"] += 1
            else:
                samples.append(sample)
    if not found:
        raise OptionError(
            f"{path}: no question about a video in {left_out.total()} items ({_told(left_out) or 'empty'})"
        )
    if not samples:
        wanted = ", ".join(kinds)
        raise OptionError(f"{path}: none of {found.total()} samples is of kinds={wanted}; there are {_told(found)}")
    samples.sort(key=lambda sample: digest("share", seed, sample.id))
    kept = samples[: max(1, round(share * len(samples)))]
    left_out["share"] = len(samples) - len(kept)
    return Reading(kept, dict(+left_out))


def split_held_out(
    samples: Sequence[Sample], share_or_count: int | float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Hold videos out of training, with all that is asked about them.

    Two paths are two videos here, although the paper's training set has some of NExT-QA's and ActivityNet's under two.

    Parameters
    ----------
    samples
        To be split; each part keeps their order.
    share_or_count
        Videos held out: how many if an int, else their share, at least one video if it is not 0.
    seed
        Of the draw, which depends on the videos' paths only; fewer of them lie within more.

    Returns
    -------
    tuple of list
        What to train on and what is held out.

    Raises
    ------
    OptionError
        If no video would be left to train on, or the number has no meaning.
    """
    videos = sorted({sample.video for sample in samples}, key=lambda video: digest("held out", seed, video))
    wanted = share_or_count
    if isinstance(wanted, float) and 0 <= wanted < 1:
        wanted = max(1, round(wanted * len(videos))) if wanted else 0
    if not isinstance(wanted, int) or not 0 <= wanted < max(1, len(videos)):
        raise OptionError(
            f"held out: {share_or_count} of {len(videos)} videos; must be a whole number or a share below 1, "
            "and leave at least 1 video to train on"
        )
    held_out = set(videos[:wanted])
    train = [sample for sample in samples if sample.video not in held_out]
    return train, [sample for sample in samples if sample.video in held_out]


def check_videos(samples: Sequence[Sample]) -> tuple[list[Sample], list[tuple[str, str]]]:
    """The samples whose video is there, and what is wrong with each video that is not; none is opened.

    Raises
    ------
    OptionError
        If there are samples, but none whose video is there.
    """
    complaints = {video: file_complaint(video) for video in dict.fromkeys(sample.video for sample in samples)}
    present = [sample for sample in samples if complaints[sample.video] is None]
    missing = [(video, complaint) for video, complaint in complaints.items() if complaint]
    if missing and not present:
        video, complaint = missing[0]
        raise OptionError(
            f"{video}: {complaint}, nor is any other of {len(missing)} videos usable; "
            "video_root must be the folder that their paths are relative to"
        )
    return present, missing


def _unsuited(item: dict[str, Any], turns: list[tuple[str, str]]) -> str | None:
    """Why an item cannot be a sample, or None."""
    if not item.get("video"):
        return "image" if item.get("image") else "text"
    if not isinstance(item["video"], str):
        return "several videos"
    return None if turns else "no question with an answer"


def _turns(item: dict[str, Any]) -> list[tuple[str, str]]:
    """Its questions and answers; half of a turn is none."""
    said = [turn if isinstance(turn, dict) else {} for turn in item["conversations"]]
    pairs = [
        (_text(asked), _text(answered))
        for asked, answered in itertools.pairwise(said)
        if asked.get("from") == "human" and answered.get("from") == "gpt"
    ]
    return [pair for pair in pairs if all(pair)]


def _text(turn: dict[str, Any]) -> str:
    text = turn.get("value")
    if not isinstance(text, str):
        return ""
    if "<" in text:  # looking for the mark takes most of the time
        text = _MARK.sub(lambda mark: "\n" if "\n" in mark[0] else " ", text)
    return text.strip().encode("utf-8", "replace").decode()  # half a surrogate pair breaks tokenizers


def _sample(
    file: Path,
    item: dict[str, Any],
    turns: list[tuple[str, str]],
    folders: tuple[str, str],
    seed: int,
    alike: Counter[str],
) -> Sample:
    root, folder = folders
    video = os.path.normpath(os.path.join(folder, item["video"]))
    own = item.get("id")
    name = (video if own is None or own == "" else str(own)).encode("utf-8", "replace").decode()
    drawn = int(digest("turn", seed, name, video, turns), 16) % len(turns) if len(turns) > 1 else 0
    question, answer = turns[drawn]
    source = sys.intern(str(item.get("data_source") or file.stem))
    kind = _kind_of_file(file) or ("multiple_choice" if _OPTIONS.search(question) else "open_ended")
    # A digest of everything but the root. What still has the same is the same, and any of them may be the second.
    unique = f"{name}@{digest('id', name, video, question, answer, source, kind)}"
    alike[unique] += 1
    if alike[unique] > 1:
        unique += f".{alike[unique]}"
    return Sample(unique, sys.intern(os.path.normpath(os.path.join(root, video))), question, answer, source, kind)


@functools.cache
def _kind_of_file(file: Path) -> str | None:
    for name in (file.stem, file.parent.name):
        kinds = {_KIND_OF_WORD[word] for word in re.split(r"[\W_]+", name.lower()) if word in _KIND_OF_WORD}
        if len(kinds) == 1:
            return kinds.pop()
    return None


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted((+counts).items()))
