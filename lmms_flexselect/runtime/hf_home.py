"""Where Hugging Face's libraries, and so lmms-eval's tasks, keep data; a module of its own since it loads nothing."""

from __future__ import annotations

import os
from pathlib import Path


def hf_home() -> Path:
    """HF_HOME as lmms-eval reads it."""
    return Path(os.path.expandvars(os.getenv("HF_HOME") or "~/.cache/huggingface")).expanduser()
