"""What this machine has: the only module of the doctor that looks around."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lmms_flexselect.errors import first_line

DISTRIBUTION = "lmms-flexselect"


@dataclass(frozen=True)
class Gpu:
    """One that torch sees; bytes of memory, free and in all."""

    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Machine:
    """What there is. A complaint is one line, or None where all is well.

    Attributes
    ----------
    python
        Version.
    packages
        Installed versions by name; None where one is not installed.
    requirements
        What this package asks for, as its metadata have it.
    broken
        Packages that are installed and cannot be imported, with the reason.
    gpus
        That torch sees.
    gpu_complaint
        Why there are none though the machine has some.
    memory
        Bytes of main memory that are free.
    cores
        Of the CPU.
    kernels
        Complaint about each attention implementation.
    decoders
        Complaint about each video decoder.
    registered
        ``--model`` names that lmms-eval finds; None if it cannot be asked.
    token
        Whether there is one for the hub.
    offline
        Whether the environment forbids asking the hub.
    home
        HF_HOME.
    disk
        Bytes free there.
    """

    python: str
    packages: Mapping[str, str | None]
    requirements: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    gpu_complaint: str | None = None
    memory: int = 0
    cores: int = 1
    kernels: Mapping[str, str | None] = field(default_factory=dict)
    decoders: Mapping[str, str | None] = field(default_factory=dict)
    registered: frozenset[str] | None = None
    token: bool = False
    offline: bool = False
    home: Path = Path("~/.cache/huggingface")
    disk: int = 0


def look() -> Machine:
    """This machine. Takes the time of importing lmms-eval, some 10 s."""
    requirements = tuple(metadata.requires(DISTRIBUTION) or ())
    names = {name for requirement in requirements if (name := _name(requirement)) != DISTRIBUTION}
    broken = {name: complaint for name in ("torch", "transformers", "lmms_eval") if (complaint := _complaint(name))}
    gpus, gpu_complaint = ((), None) if "torch" in broken else _gpus()
    home = _home()
    return Machine(
        python=platform.python_version(),
        packages={name: _version(name) for name in names},
        requirements=(f"python{metadata.metadata(DISTRIBUTION)['Requires-Python']}", *requirements),
        broken=broken,
        gpus=gpus,
        gpu_complaint=gpu_complaint,
        memory=_free_memory(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        kernels={} if broken else _kernels(),
        decoders={} if broken else _decoders(),
        registered=None if broken else _registered(),
        token=bool(_hub().get_token()),
        offline=bool(_hub().constants.HF_HUB_OFFLINE),
        home=home,
        disk=shutil.disk_usage(existing(home)).free,
    )


def existing(path: Path) -> Path:
    """The nearest folder above a path that there is."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _complaint(module: str) -> str | None:
    return _tried(lambda: __import__(module))


def _tried(attempt: Callable[[], object]) -> str | None:
    """Why something fails, whatever it raises: this is where broken installations show."""
    try:
        attempt()
    except Exception as error:
        return first_line(error)
    return None


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            return (), None
        built = torch.version.cuda
        return (), f"torch is built for CUDA {built} and finds none" if built else "torch is built without CUDA"
    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found.append(Gpu(torch.cuda.get_device_name(number), free, total))
    return tuple(found), None


def _free_memory() -> int:
    """By /proc, and by the control group's limit where that is lower."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
    try:
        top, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, int(top) - int(used))
    except (OSError, ValueError):  # no group, or no limit
        return free


def _kernels() -> dict[str, str | None]:
    from transformers.utils import is_flash_attn_2_available

    flash = None if is_flash_attn_2_available() else "flash-attn is not installed, or there is no GPU for it"
    return {"eager": None, "sdpa": None, "flash_attention_2": flash}


def _decoders() -> dict[str, str | None]:
    """Decode eight frames that are written for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"

        def write() -> None:
            from lmms_flexselect.needle.videos import NeedleVideo, write_video

            write_video(path, NeedleVideo.draw(0, 4, 1).frames())

        def read(decoder: str) -> None:
            from lmms_flexselect.video.reading import open_video

            frames = open_video(str(path), decoder).read(range(8))
            if frames.float().mean() < 1:
                raise ValueError("frames come out black")

        if complaint := _tried(write):
            return {"decord": f"no video could be written to try it on ({complaint})"}
        found = {name: _tried(lambda name=name: read(name)) for name in ("pyav", "decord")}  # type: ignore[misc]
        return {name: text and text.replace(str(path), "video.mp4") for name, text in found.items()}


def _registered() -> frozenset[str]:
    from lmms_eval import models

    return frozenset(models.MODEL_REGISTRY_V2.list_canonical_model_ids())


def _hub() -> Any:
    import huggingface_hub

    return huggingface_hub


def _home() -> Path:
    return Path(_hub().constants.HF_HOME).expanduser()
