"""The few things asked of the hub, and what its errors mean for the person at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token, hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HTTPError,  # of httpx or httpx2, whichever the installed release is made with
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from lmms_flexselect.errors import FlexSelectError, first_line


def files(repository: str) -> dict[str, int]:
    """Names and sizes in bytes of the files of a data set."""
    with _explained(repository):
        siblings = HfApi().dataset_info(repository, files_metadata=True).siblings or []
    return {sibling.rfilename: sibling.size or 0 for sibling in siblings}


def download(repository: str, name: str) -> Path:
    """A file of a data set, in the hub's cache.

    A connection that breaks is taken up again where it broke; a process that is stopped begins the file anew, because
    huggingface_hub keeps no part of it.
    """
    with _explained(repository):
        return Path(hf_hub_download(repository, name, repo_type="dataset"))


def cached(repository: str, name: str) -> Path | None:
    """The file in the hub's cache, or None."""
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    page = f"https://huggingface.co/datasets/{repository}"
    try:
        yield
    except GatedRepoError:
        log_in = "" if get_token() else ", log in with `hf auth login` or set HF_TOKEN,"
        whose = " with the account of this token" if get_token() else ""
        raise FlexSelectError(
            f"{repository} is gated: accept its conditions on {page}{whose}{log_in} and run this again"
        ) from None
    except RepositoryNotFoundError:
        raise FlexSelectError(f"{repository}: {page} is not there, or not for this token (`hf auth login`)") from None
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's, which most downloads go through
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        reason = cause if isinstance(cause, Exception) else error
        if isinstance(reason, OfflineModeIsEnabled):
            raise FlexSelectError(f"{repository}: unset HF_HUB_OFFLINE to download") from None
        what = f"{type(reason).__name__}: {first_line(reason)}"
        raise FlexSelectError(f"{repository}: the download failed ({what}); run this again to go on") from None
