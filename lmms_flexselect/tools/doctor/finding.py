"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    level
        `OK`, `NOTE`, or `PROBLEM` if the config cannot run.
    subject
        What was looked at.
    text
        What was found.
    remedy
        What to do about it; empty if nothing.
    """

    level: str
    subject: str
    text: str
    remedy: str = ""
