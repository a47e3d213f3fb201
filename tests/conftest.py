"""One offline home for the whole run: stock data sets, videos, and a small random checkpoint."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before anything imports lmms-eval or datasets: both read these once, at import.
_HOME = Path(tempfile.mkdtemp(prefix="flexselect-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {
    "HF_HOME": str(_HOME),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FORCE_QWENVL_VIDEO_READER": "decord",
}

import pytest  # noqa: E402
import torch  # noqa: E402

from lmms_flexselect.families.qwen2_5_vl.needle import build_model, build_processor  # noqa: E402
from tests.support import paper_tasks, stock_tasks  # noqa: E402
from tests.support.llava_checkpoint import write_checkpoint  # noqa: E402

torch.set_num_threads(1)  # the models are tiny, and tests run side by side


@pytest.fixture(scope="session")
def hf_home() -> Path:
    """HF_HOME of this run, and of every lmms-eval it starts."""
    return _HOME


@pytest.fixture(scope="session")
def stock_videos(hf_home: Path) -> dict[str, list[Path]]:
    """The four stock tasks' data sets, four questions each: the videos of each task, in the order of its rows."""
    return {task: stock_tasks.build(hf_home, task) for task in stock_tasks.STOCK_TASKS}


@pytest.fixture(scope="session")
def paper_data(stock_videos: dict[str, list[Path]], hf_home: Path) -> Path:
    """HF_HOME with all that the paper's tasks need beside the stock tasks' data."""
    paper_tasks.build(hf_home)
    return hf_home


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL of 1.7 M parameters with random weights and a working processor."""
    folder = tmp_path_factory.mktemp("checkpoints") / "random_qwen2_5_vl"
    torch.manual_seed(7)
    processor = build_processor()
    build_model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-Video of 0.4 M parameters with random weights and a working tokenizer, laid out as the published ones."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random_llava_video")
