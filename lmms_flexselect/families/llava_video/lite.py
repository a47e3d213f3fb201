"""FlexSelect-Lite's network for LLaVA-Video."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from lmms_flexselect.families.llava_video.model import projected
from lmms_flexselect.lite.networks import SelectorNetwork as Network


class SelectorNetwork(Network, Qwen2Model):
    """Reads SigLIP's features of LLaVA-Video through an own projector, the same pooling and an own newline."""

    mark = "mm_projector.0.weight"
    published_model_type = "qwen2"
    reading_defaults = {"mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}  # noqa: RUF012

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.mm_projector = nn.Sequential(
            nn.Linear(config.tower_width, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)
        self.post_init()

    def project(self, features: Tensor) -> Tensor:
        """``(frames, patches, tower)`` to ``(frames, tokens, hidden)``, newlines included."""
        pooling = (self.config.mm_spatial_pool_mode, self.config.mm_spatial_pool_stride)
        return projected(self.mm_projector, features, self.image_newline, *pooling)
