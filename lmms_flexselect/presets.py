"""What a checkpoint tells about how to run FlexSelect on it.

Three sources, later ones win: the published setting for the models that the paper used (`identify` says which one a
checkpoint is of), the checkpoint's own ``"flexselect"`` entry in its ``config.json``, and what the user gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_flexselect.checkpoints import identify
from lmms_flexselect.families.spec import family as family_named

OPERATIONAL = (
    "dump_selection",
    "strict",
    "prefetch_videos",
    "video_timeout",
    "store_gpu_gib",
    "store_cpu_gib",
    "process_timeout",
)
"""Options that change no answer: where files go, what is done about bad videos, and what saves time for memory."""

PLACEMENT = ("batch_size", "device", "device_map")
"""Upstream's arguments that say where and how a model runs; answers are the same with others, but for rounding."""


def preset(
    family: str,
    pretrained: str,
    own: Mapping[str, Any] | None,
    num_layers: int,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Model arguments that fit a checkpoint, ours and upstream's.

    Parameters
    ----------
    family
        Its name.
    pretrained
        Hub name or folder, as given.
    own
        The ``"flexselect"`` entry of the checkpoint's configuration, if it has one.
    num_layers
        Depth of its decoder.
    config
        Contents of its ``config.json``, where they are at hand.
    """
    spec = family_named(family)
    filled: dict[str, Any] = {"reference_layer": spec.reference_layer(num_layers)[0], **spec.defaults}
    if identify(family, pretrained, config).model is not None:
        filled |= spec.published_arguments
    return filled | dict(own or {})


def preset_message(
    family: str, pretrained: str, own: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Which preset a checkpoint gets and why, for the log, and the log's level: ``INFO``, ``WARNING`` if in doubt."""
    identity = identify(family, pretrained, config)
    entry = ", and what its config.json says under flexselect" if own else ""
    if identity.model is None:
        level = "INFO" if own else "WARNING"
        rest = entry.removeprefix(", and ") or "lmms-eval's own frames and pixels"
        return f"pretrained={pretrained}: no preset fits: {identity.reason}. Without other arguments: {rest}", level
    settings = ", ".join(f"{name}={value}" for name, value in family_named(family).published_arguments.items())
    said = f"pretrained={pretrained}: preset of {identity.model} ({settings}{entry}): {identity.reason}"
    if identity.doubt:
        return f"{said}. But its shape is another: {identity.doubt}", "WARNING"
    return said, "INFO"
