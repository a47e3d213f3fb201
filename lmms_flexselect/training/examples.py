"""The training set as the trainer walks it: videos read when their turn comes, unreadable ones listed and replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger
from torch.utils.data import Dataset

from lmms_flexselect.errors import FlexSelectError, OptionError, VideoError
from lmms_flexselect.saving import saving
from lmms_flexselect.training.cache import ScoreCache
from lmms_flexselect.training.data import Sample
from lmms_flexselect.training.objective import Example

QUERIES = ("question_answer", "question")


class VideoExamples(Dataset):
    """Samples as `Example`s; the next one in the place of one whose video cannot be read.

    Something has to be in its place: where several processes learn together, all of them wait for each other's
    gradients.

    Parameters
    ----------
    samples
        What is asked about which video.
    reader
        Of the family (see `lmms_flexselect.families.reader`).
    query
        ``"question_answer"``: the answer belongs to the query, as in the reference's training; ``"question"``: it
        does not, as in evaluation.
    cache
        Of the teacher's scores, by sample and content of its video; None for none.
    skipped
        File that every unreadable video is added to, by whichever process meets it.
    """

    def __init__(
        self, samples: Sequence[Sample], reader: Any, query: str, cache: ScoreCache | None, skipped: Path
    ) -> None:
        if query not in QUERIES:
            raise OptionError(f"query={query}: must be one of {', '.join(QUERIES)}")
        self._samples, self._reader, self._query = list(samples), reader, query
        self._cache, self._skipped = cache, skipped

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        """Raises `FlexSelectError` if no video of all of them can be read."""
        for sample in (*self._samples[index:], *self._samples[:index]):
            try:
                answer = sample.answer if self._query == "question_answer" else ""
                inputs = self._reader.read(sample.video, sample.question, answer)
            except VideoError as error:
                logger.warning(f"skipped {sample.id}: {error}")
                with saving(self._skipped), self._skipped.open("a") as file:
                    file.write(json.dumps({"id": sample.id, "video": sample.video, "error": str(error)}) + "\n")
            else:
                if self._cache is None:
                    return Example(sample.id, inputs, None)
                name = f"{sample.id} of {_content_digest(sample.video)}"
                return Example(name, inputs, self._cache.get(name))
        raise FlexSelectError(f"none of {len(self._samples)} videos can be read; see {self._skipped}")


def _content_digest(path: str) -> str:
    """Of a file's bytes: scores on disk outlive it, and another video may come in its place."""
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def skipped_videos(path: Path) -> dict[str, str]:
    """What is wrong with each video that was skipped, by its path."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {line["video"]: line["error"] for line in lines}
