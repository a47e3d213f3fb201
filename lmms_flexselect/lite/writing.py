"""Writing a selector in the published layout, with an entry in its ``config.json`` that says it was trained here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from lmms_flexselect.families.family import Tower
from lmms_flexselect.lite.checkpoint import OWN, PLAIN
from lmms_flexselect.saving import replacing


def write_selector(
    folder: str | Path,
    config: Any,
    weights: Mapping[str, Tensor],
    tower: Tower,
    reduction: str,
    tokenizer: Any = None,
    **more: Any,
) -> None:
    """Write a selector's folder; a file that is there already is replaced only once the new one is complete.

    Parameters
    ----------
    folder
        Made if it is not there.
    config
        The module's.
    weights
        The module's state dict; written in the dtype they have.
    tower
        What the selector reads.
    reduction
        What its scores are read with.
    tokenizer
        InternVL: the selector's own.
    more
        Further entries that tell how it was trained.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value for name, value in asdict(tower).items() if value is not None}
    words = {
        "architectures": ["FlexSelectLite"],
        "model_type": "qwen2_5_vl" if tower.three_axes else "qwen2",
        **{name: getattr(config, name) for name in PLAIN if getattr(config, name, None) is not None},
        **_rope(config.rope_parameters),
        **(tower.pooling or {}),
        "tie_word_embeddings": False,
        "drop_func_name": "token_selection" if reduction == "max" else reduction,  # the reference's name for it
        OWN: {**own, "reduction": reduction, **more},
    }
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    with replacing(folder / CONFIG_NAME) as path:
        path.write_text(json.dumps(words, indent=2) + "\n")
    contents = {name: weight.detach().to("cpu").contiguous() for name, weight in weights.items()}
    with replacing(folder / SAFE_WEIGHTS_NAME) as path:
        path.touch()
        mode = path.stat().st_mode
        save_file(contents, path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors makes files that only their owner can read


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters by the names that older libraries, and the reference, read."""
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    if "mrope_section" in scaling and scaling.get("rope_type", "default") == "default":
        scaling["rope_type"] = scaling["type"] = "mrope"
    plain = scaling.get("rope_type", "default") == "default"
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": None if plain else scaling}
