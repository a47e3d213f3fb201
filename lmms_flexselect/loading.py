"""Loading a checkpoint so that nothing of it is missing: transformers itself fills gaps with random numbers."""

from __future__ import annotations

from json import JSONDecodeError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from lmms_flexselect.errors import OptionError, first_line


def raw_config(pretrained: str, revision: str | None = None) -> dict[str, Any]:
    """What a checkpoint's ``config.json`` says, as it is, for layouts that transformers does not know.

    Raises
    ------
    OptionError
        If there is none.
    """
    try:
        contents, _ = PreTrainedConfig.get_config_dict(pretrained, revision=revision)
        if not [name for name in contents if not name.startswith("_")]:  # 5.2 adds a hash of the commit
            raise OSError("no config.json")
    except Exception as error:
        raise _nothing_there(pretrained, error) from None
    return contents


def checkpoint_config(pretrained: str, *model_types: str) -> Any:
    """The configuration of a checkpoint, read before any weights are.

    Raises
    ------
    OptionError
        If there is none, or its ``model_type`` is none of `model_types`.
    """
    try:
        config = AutoConfig.from_pretrained(pretrained)
    except Exception as error:
        raise _nothing_there(pretrained, error) from None
    if config.model_type not in model_types:
        read = " and ".join(model_types)
        raise OptionError(f"pretrained={pretrained}: is a {config.model_type} checkpoint; this class reads {read}")
    return config


def _nothing_there(pretrained: str, error: Exception) -> OptionError:
    return OptionError(f"pretrained={pretrained}: no checkpoint could be read there ({first_line(error)})")


def load_whole(
    model_class: Any, pretrained: str, dtype: torch.dtype, all_known: bool = False, source: Any = None, **kwargs: Any
) -> Any:
    """`model_class.from_pretrained`, refused unless every weight is there.

    Parameters
    ----------
    model_class
        Of transformers, or made like its classes.
    pretrained
        Hub name or folder.
    dtype
        Of the weights.
    all_known
        Whether a weight that the model has no place for is refused too.
    source
        What takes the place of `pretrained` in the call, for weights that are in hand already.
    kwargs
        For ``from_pretrained``.

    Raises
    ------
    OptionError
        If a weight is missing, misshapen or unknown, or the files cannot be read; the message names one.
    """
    source = {"pretrained_model_name_or_path": pretrained} if source is None else source
    try:
        model, info = model_class.from_pretrained(
            **source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except (ImportError, OSError, SafetensorError, JSONDecodeError) as error:  # ImportError: of an attention kernel
        raise OptionError(f"pretrained={pretrained}: {first_line(error)}") from None
    wrong_shape = [key[0] for key in info["mismatched_keys"]]
    unknown = info["unexpected_keys"] if all_known else ()
    for problem, names in (("missing", info["missing_keys"]), ("of another shape", wrong_shape), ("unknown", unknown)):
        if names:
            raise OptionError(f"pretrained={pretrained}: {len(names)} weight(s) {problem}, among them {min(names)}")
    return model


def load_tokenizer(tokenizer_class: Any, pretrained: str, **kwargs: Any) -> Any:
    """`tokenizer_class.from_pretrained`.

    Raises
    ------
    OptionError
        If it cannot be read.
    """
    try:
        return tokenizer_class.from_pretrained(pretrained, **kwargs)
    except Exception as error:
        raise OptionError(f"pretrained={pretrained}: its tokenizer cannot be read ({first_line(error)})") from None
