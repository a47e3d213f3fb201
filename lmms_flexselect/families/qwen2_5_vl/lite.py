"""FlexSelect-Lite's network for Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger, Qwen2_5_VLTextModel

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.mrope import with_mrope_section
from lmms_flexselect.lite.networks import SelectorNetwork as Network


class SelectorNetwork(Network, Qwen2_5_VLTextModel):
    """Reads Qwen2.5-VL's tower through an own patch merger."""

    mark = "merger_token_selector.ln_q.weight"
    published_model_type = "qwen2_5_vl"
    complete = staticmethod(with_mrope_section)

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__(config)
        self.merger_token_selector = Qwen2_5_VLPatchMerger(
            dim=config.hidden_size, context_dim=config.tower_width, spatial_merge_size=config.spatial_merge_size
        )
        self.post_init()

    def project(self, features: Tensor) -> Tensor:
        """``(patches, tower)`` to ``(tokens, hidden)``, in the order of the tower's windows."""
        return self.merger_token_selector(features)

    @staticmethod
    def teacher_projector(model: Any) -> dict[str, Tensor]:
        """The model's patch merger: the published selector's is its first rows and was not trained."""
        return {name: weight.float().cpu() for name, weight in model.model.visual.merger.state_dict().items()}

    def take_projector(self, teacher: Mapping[str, Tensor]) -> None:
        """Copy as many rows as this network has, and freeze them.

        Raises
        ------
        OptionError
            If the teacher has fewer.
        """
        for name, value in self.merger_token_selector.state_dict().items():
            rows = teacher[name][: len(value)]
            if rows.shape != value.shape:
                raise OptionError(
                    f"the model's patch merger has {len(rows)} rows, and the selector needs {len(value)}; "
                    "give train_projector=true for one of its own"
                )
            value.copy_(rows)
        self.merger_token_selector.requires_grad_(False)
