"""FlexSelect-Lite's network for Qwen3-VL."""

from __future__ import annotations

from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger, Qwen2_5_VLTextModel

from lmms_flexselect.families.mrope import with_mrope_section
from lmms_flexselect.lite.networks import SelectorNetwork as Network


class SelectorNetwork(Network, Qwen2_5_VLTextModel):
    """Reads Qwen3-VL's last tower features through an own patch merger; none of its DeepStack features.

    The decoder is Qwen2's with three-axis positions, as of Qwen2.5-VL's selector, so that the same small models can
    start it.
    """

    mark = "merger.ln_q.weight"
    published_model_type = "qwen2_5_vl"
    complete = staticmethod(with_mrope_section)

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__(config)
        self.merger = Qwen2_5_VLPatchMerger(
            dim=config.hidden_size, context_dim=config.tower_width, spatial_merge_size=config.spatial_merge_size
        )
        self.post_init()

    def project(self, features: Tensor) -> Tensor:
        """``(patches, tower)`` to ``(tokens, hidden)``."""
        return self.merger(features)
