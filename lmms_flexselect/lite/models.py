"""The selectors' modules, nested so that the published parameter names load and save as they are.

Each is a small decoder with an own projection of the VideoLLM's tower features beside it; it has

decoder
    what has ``layers[i].self_attn``: scores are read in its last layer, and its final norm is not used;
embed(ids)
    text embeddings ``(tokens, hidden)``;
project(features)
    visual tokens from what the VideoLLM's own projector reads, one for each of its tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger, Qwen2_5_VLTextModel

from lmms_flexselect.families.llava_video_model import projected


class _DecoderItself:
    """A selector whose published names are its decoder's own."""

    embed_tokens: nn.Module

    @property
    def decoder(self) -> Any:
        """The text model."""
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings."""
        return self.embed_tokens(ids)


class LlavaVideoSelector(_DecoderItself, Qwen2Model):
    """Reads SigLIP's features of LLaVA-Video through an own projector, the same pooling and an own newline."""

    family = "llava_vid"

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


class Qwen2_5_VLSelector(_DecoderItself, Qwen2_5_VLTextModel):
    """Reads Qwen2.5-VL's tower through an own patch merger."""

    family = "qwen2_5_vl"

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__(config)
        self.merger_token_selector = Qwen2_5_VLPatchMerger(
            dim=config.hidden_size, context_dim=config.tower_width, spatial_merge_size=config.spatial_merge_size
        )
        self.post_init()

    def project(self, features: Tensor) -> Tensor:
        """``(patches, tower)`` to ``(tokens, hidden)``, in the order of the tower's windows."""
        return self.merger_token_selector(features)


class Qwen3VLSelector(_DecoderItself, Qwen2_5_VLTextModel):
    """Reads Qwen3-VL's last tower features through an own patch merger; none of its DeepStack features.

    The decoder is Qwen2's with three-axis positions, as of Qwen2.5-VL's selector, so that the same small models
    can start it.
    """

    family = "qwen3_vl"

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__(config)
        self.merger = Qwen2_5_VLPatchMerger(
            dim=config.hidden_size, context_dim=config.tower_width, spatial_merge_size=config.spatial_merge_size
        )
        self.post_init()

    def project(self, features: Tensor) -> Tensor:
        """``(patches, tower)`` to ``(tokens, hidden)``."""
        return self.merger(features)


class InternVLSelector(PreTrainedModel):
    """Reads InternVL's pixel-shuffled tower features through an own ``mlp1``."""

    family = "internvl_hf"
    config_class = Qwen2Config
    _no_split_modules = ["Qwen2DecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.language_model = nn.ModuleDict({"model": Qwen2Model(config)})
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(config.tower_width),
            nn.Linear(config.tower_width, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.post_init()

    @property
    def decoder(self) -> nn.Module:
        """The text model."""
        return self.language_model["model"]

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings."""
        return self.get_input_embeddings()(ids)

    def get_input_embeddings(self) -> Any:
        """The decoder's."""
        return self.decoder.embed_tokens

    def project(self, features: Tensor) -> Tensor:
        """``(tiles, tokens, tower)`` to ``(tiles, tokens, hidden)``."""
        return self.mlp1(features)


SELECTORS: dict[str, Any] = {
    c.family: c for c in (LlavaVideoSelector, Qwen2_5_VLSelector, Qwen3VLSelector, InternVLSelector)
}
