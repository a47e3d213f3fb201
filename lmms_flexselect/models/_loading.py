"""What upstream's constructors are given in place of what they load with."""

from __future__ import annotations

from typing import Any

import torch

from lmms_flexselect.loading import load_whole


class StrictLoader:
    """A model class as upstream's constructors use it, which takes our dtype and refuses a checkpoint with gaps.

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

    def from_pretrained(self, pretrained: str, torch_dtype: Any = None, device_map: Any = None, **kwargs: Any) -> Any:
        """See `load_whole`; `torch_dtype`, upstream's, is not looked at, and an empty `device_map` is none."""
        return load_whole(self._model_class, pretrained, self._dtype, device_map=device_map or None, **kwargs)


class OneProcess:
    """The part of `Accelerator` that upstream's constructors and loops read when there is one process."""

    num_processes = 1
    local_process_index = 0
    process_index = 0
    is_main_process = True

    def __init__(self, **kwargs: Any) -> None:
        """Takes what `Accelerator` takes."""

    @staticmethod
    def unwrap_model(model: Any) -> Any:
        """See `Accelerator.unwrap_model`."""
        return model
