"""`SelectingModel` for wrappers of lmms-eval that hand a processor's batch to ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmms_flexselect.models._records import PreparedRow
from lmms_flexselect.models._selecting_model import Answers, SelectingModel
from lmms_flexselect.models._upstream import EscapeUpstream


class BatchSelectingModel(SelectingModel):
    """Called as upstream calls its model, with what our processor made of a batch, `PreparedRow`s among it."""

    _inputs: ClassVar[frozenset[str]]
    """Names of what the processor makes."""
    _visual_token: ClassVar[str]
    """What the configuration calls the placeholder of a visual token."""

    def generate(self, **kwargs: Any) -> Tensor:
        """transformers' ``generate``, over prompts shortened to the token budget.

        Returns
        -------
        Tensor
            ``(batch, prompt + new)`` int64: the *unshortened* `input_ids` with the new tokens behind them, since
            upstream cuts the prompt off by its length. The answer of a row whose video could not be read is padding.

        Raises
        ------
        EscapeUpstream
            For whatever goes wrong: some of upstream's loops would make an empty answer of any `Exception`.
        """
        inputs = {name: kwargs.pop(name) for name in list(kwargs) if name in self._inputs}
        ids = inputs["input_ids"]
        rows: list[PreparedRow] = kwargs.pop("rows")
        try:
            return torch.cat([ids, self._generated(inputs, rows, **kwargs).to(ids.device)], dim=1)
        except Exception as error:
            raise EscapeUpstream(error) from error

    def _answer(self, inputs: Mapping[str, Any], **kwargs: Any) -> Answers:
        if not self._passes_through(inputs):
            return super()._answer(inputs, **kwargs)
        ids = inputs["input_ids"]
        new = self._family.model.generate(**self._upstreams(inputs), **kwargs)[:, ids.shape[1] :]
        visual = (ids == getattr(self._family.model.config, self._visual_token)).sum(1).tolist()
        real = inputs.get("attention_mask", torch.ones_like(ids)).sum(1).tolist()
        counts = [
            {"visual_tokens": v, "visual_tokens_kept": v, "input_tokens": n} for v, n in zip(visual, real, strict=True)
        ]
        return Answers(new, counts, [None] * len(ids), 0.0)

    def _passes_through(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the request is upstream's own business."""
        raise NotImplementedError

    def _upstreams(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs that the model itself takes."""
        return inputs
