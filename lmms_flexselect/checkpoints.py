"""What a checkpoint is: its name, which published model it is of, and what its files hold."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lmms_flexselect.families.spec import family as family_named
from lmms_flexselect.families.spec import published_models

_HASHED_WHOLE = 64 * 2**20  # bytes; of a larger file, which is read for minutes, the beginning and the inode count
_BEGINNING = 2**20
_ANSWERING = {".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".jinja"}  # endings of files that are loaded


@dataclass(frozen=True)
class Identity:
    """What is known of a checkpoint.

    Attributes
    ----------
    name
        What it is called, without the folders it lies in.
    model
        Name of the published model that it is, or was made of (see `FamilySpec`); None if it is of none.
    reason
        How that shows, or why it is of none, in words.
    doubt
        What speaks against it, in words; empty if nothing does.
    """

    name: str
    model: str | None
    reason: str
    doubt: str = ""


def checkpoint_name(pretrained: str) -> str:
    """A checkpoint's name without the folders it lies in: the hub name's last part, or the folder's.

    The folder of a snapshot in the hub's cache is called as on the hub; ``checkpoint-1000``, as Trainer writes many,
    has its run's folder before it.
    """
    path = os.path.expanduser(pretrained.replace("\\", "/"))
    # `.` and `..` mean something where there is such a folder, and can be taken out of a path that is from elsewhere.
    path = os.path.abspath(path) if os.path.isdir(path) else os.path.normpath(path) if path else ""
    parts = [part for part in path.split("/") if part]
    if "snapshots" in parts[1:]:  # of the hub's cache: models--ORGANISATION--NAME/snapshots/COMMIT
        return parts[parts.index("snapshots", 1) - 1].rpartition("--")[2]
    if len(parts) > 1 and re.fullmatch(r"checkpoint-\d+", parts[-1]):
        return "/".join(parts[-2:])
    name = parts[-1] if parts else ""
    return name.rpartition("--")[2] if name.startswith("models--") else name


def identify(family: str, pretrained: str, config: Mapping[str, Any] | None = None) -> Identity:
    """Which published model a checkpoint is, or was made of.

    Its name decides: that of its folder as it is given, that of the folder a link leads to, or the one in its
    ``config.json`` (``_name_or_path``). If none of them names a model of the family, the shape of its decoder does.

    Parameters
    ----------
    family
        Its family's name.
    pretrained
        Hub name or folder, as given.
    config
        Contents of its ``config.json``; None if they are not at hand.
    """
    own = checkpoint_name(pretrained)
    names = {own: "its name"}
    folder = os.path.expanduser(pretrained)
    if os.path.isdir(folder):
        names.setdefault(checkpoint_name(os.path.realpath(folder)), "the folder it links to")
    if config and isinstance(base := config.get("_name_or_path"), str):
        names.setdefault(checkpoint_name(base), "_name_or_path in its config.json")
    shape = _shape(config) if config else None
    models = {model.name: model for model in family_named(family).published}
    for name, source in names.items():
        for key, model in models.items():
            place = _place(key, name)
            doubt = "" if shape in (None, (model.hidden_size, model.num_layers)) else _words(shape)
            # Other words before a model's name may say that it is something else: compare-with-NAME.
            if place == 0 or (place and not doubt):
                called = own if source.startswith("_name") else name
                return Identity(called, key, f"{source} is {name}", doubt)
    for key, model in models.items():
        if config and shape == (model.hidden_size, model.num_layers) and model.entries.items() <= _entries(config):
            return Identity(own, key, f"its config.json has the shape of that model ({_words(shape)})")
    if not models:
        return Identity(own, None, "no settings were published for models of this family")
    known = ", ".join(models)
    shown = f", and its shape ({_words(shape)}) is none of theirs" if shape else ""
    return Identity(own, None, f"its name ({own}) is none of {known}{shown}")


def published_model(name: str) -> str | None:
    """The published model (see `FamilySpec`) whose checkpoint is called like this, however that is spelled; else None.

    A fine-tuned or quantised checkpoint, which has more in its name, answers otherwise, so it is none.
    """
    spelled = _letters(name)
    models = (model for _, model in published_models().values())
    return next((m.name for m in models if spelled in (_letters(m.name), _letters(m.checkpoint))), None)


def same_checkpoint(one: str, other: str) -> bool:
    """Whether two names are one, but for case and what stands between letters and numbers."""
    return _letters(one) == _letters(other)


def content_id(pretrained: str, revision: str | None = None) -> str:
    """A hash of what a checkpoint's files hold, that is another one when any of them is replaced.

    Small files are read whole. Of a large one its beginning counts (the names, types and sizes of its weights), and
    what the file system knows of it: the name of its blob in the hub's cache, which is a hash of it, elsewhere its
    size, inode and times. So a copy of a large checkpoint may have another one, never another checkpoint the same.

    Parameters
    ----------
    pretrained
        Folder, or hub name of what is in the hub's cache.
    revision
        On the hub.

    Returns
    -------
    str
        Hexadecimal digits; empty if no such checkpoint is here.
    """
    folder = Path(os.path.expanduser(pretrained))
    if not folder.is_dir():
        try:
            config = try_to_load_from_cache(pretrained, "config.json", revision=revision)
        except ValueError:  # no hub name
            config = None
        if not isinstance(config, str):
            return ""
        folder = Path(config).parent
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in _ANSWERING and file.is_file():
            total.update(f"{file.name}\0{_file_id(file)}\0".encode())
    return total.hexdigest()[:32]


def _file_id(file: Path) -> str:
    target = file.resolve()
    state = target.stat()
    with target.open("rb") as opened:
        if state.st_size <= _HASHED_WHOLE:
            return hashlib.sha256(opened.read()).hexdigest()
        beginning = hashlib.sha256(opened.read(_BEGINNING)).hexdigest()
    if target.parent.name == "blobs":
        return f"{beginning} {target.name}"
    return f"{beginning} {state.st_size} {state.st_ino} {state.st_mtime_ns} {state.st_ctime_ns}"


def _place(model: str, name: str) -> int | None:
    """Where a checkpoint's name has a model's, whatever stands between letters and numbers; None if it has it not."""
    pieces = re.findall(r"[a-z0-9]+", model.lower())
    pattern = rf"(?<![a-z0-9]){'[^a-z0-9]*'.join(pieces)}(?![a-z0-9])"
    found = re.search(pattern, name.lower())
    return None if found is None else found.start()


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _shape(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Width and depth of the decoder, from ``config.json`` of any layout."""
    text = next((config[part] for part in ("text_config", "llm_config") if isinstance(config.get(part), dict)), config)
    return text.get("hidden_size"), text.get("num_hidden_layers")


def _words(shape: tuple[Any, Any] | None) -> str:
    return "" if shape is None else f"hidden_size {shape[0]}, {shape[1]} layers"


def _entries(config: Mapping[str, Any]) -> Any:
    plain = {name: value for name, value in config.items() if isinstance(value, (str, int))}
    return {"template": plain.get("original_template"), **plain}.items()
