"""Loading a checkpoint through an upstream constructor: our dtype, and no weight missing."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from lmms_flexselect.errors import OptionError


def checkpoint_config(pretrained: str, model_type: str) -> Any:
    """The configuration of a checkpoint, read before any weights are.

    Raises
    ------
    OptionError
        If there is none, or it is another family's.
    """
    try:
        config = AutoConfig.from_pretrained(pretrained)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(f"pretrained={pretrained}: no checkpoint could be read there ({reason})") from None
    if config.model_type != model_type:
        raise OptionError(
            f"pretrained={pretrained}: is a {config.model_type} checkpoint; this class reads {model_type}"
        )
    return config


class StrictLoader:
    """A model class as upstream's constructors use it, which refuses a checkpoint that is not whole.

    Parameters
    ----------
    model_class
        The class that upstream would use.
    dtype
        Of the weights: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    """

    def __init__(self, model_class: Any, dtype: str) -> None:
        self._model_class = model_class
        self._dtype = getattr(torch, dtype)

    def from_pretrained(self, pretrained: str, torch_dtype: Any = None, **kwargs: Any) -> Any:
        """Load with our dtype; transformers itself would fill gaps with random numbers and a warning.

        Raises
        ------
        OptionError
            If a weight is missing or misshapen, or the files cannot be read; the message names one.
        """
        try:
            model, info = self._model_class.from_pretrained(
                pretrained, dtype=self._dtype, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except (OSError, SafetensorError) as error:
            raise OptionError(f"pretrained={pretrained}: {str(error).splitlines()[0]}") from None
        wrong_shape = [key[0] for key in info["mismatched_keys"]]
        for problem, names in (("missing", info["missing_keys"]), ("of another shape", wrong_shape)):
            if names:
                first = min(names)
                raise OptionError(f"pretrained={pretrained}: {len(names)} weight(s) {problem}, among them {first}")
        return model


class OneProcess:
    """The part of `Accelerator` that upstream's constructors read when there is one process."""

    num_processes = 1
    local_process_index = 0
    process_index = 0

    @staticmethod
    def unwrap_model(model: Any) -> Any:
        """See `Accelerator.unwrap_model`."""
        return model
