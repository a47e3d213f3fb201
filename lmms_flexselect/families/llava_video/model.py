"""LLaVA-Video in transformers' own SigLIP and Qwen2 classes, with the parameter names of the original checkpoints.

transformers has no class with LLaVA-Video's newline after every *row* of a frame, and the original code needs a
transformers of 2024. Modules are nested so that a checkpoint such as ``lmms-lab/LLaVA-Video-7B-Qwen2`` loads without
renaming anything, and is saved in the same layout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model, SiglipVisionConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipPreTrainedModel, SiglipVisionEmbeddings
from transformers.utils import cached_file

from lmms_flexselect.errors import OptionError
from lmms_flexselect.loading import raw_config

POOLINGS = ("bilinear", "average")
MODEL_TYPE = "llava_qwen"

# google/siglip-so400m-patch14-384, the tower of all published checkpoints; their config.json gives its name alone.
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_TOWER_FILE = "siglip_vision_config.json"

# What this code does, by the names and values that an original config.json has for it.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_newline_position": ("grid",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "add_faster_video": (False, None),
    "mm_use_im_start_end": (False, None),
}


class LlavaVideoConfig(Qwen2Config):
    """The decoder's configuration, the tower's in `vision_config`, and LLaVA-Video's own names as they are.

    `vision_config` describes the whole published tower; its last encoder layer is not built, since LLaVA reads the
    features before it (``mm_vision_select_layer=-2``).
    """

    model_type = MODEL_TYPE
    sub_configs = {"vision_config": SiglipVisionConfig}  # noqa: RUF012

    @classmethod
    def from_original(cls, original: Mapping[str, Any], tower: Mapping[str, Any] | None = None) -> LlavaVideoConfig:
        """From the contents of an original ``config.json``.

        Parameters
        ----------
        original
            Its contents.
        tower
            The SigLIP configuration, where it is not the published one.

        Raises
        ------
        OptionError
            If a setting asks for what this code does not do.
        """
        for name, supported in _REQUIRED.items():
            value = original.get(name, supported[0])
            if value not in supported:
                raise OptionError(f"{name}={value}: only {supported[0]} is supported")
        mode, stride = (original.get(f"mm_spatial_pool_{name}") for name in ("mode", "stride"))
        mode, stride = "bilinear" if mode is None else mode, 2 if stride is None else stride
        check_pooling(mode, stride)
        dropped = ("rope_scaling", "model_type", "vision_config", "transformers_version", "architectures")
        values = {name: value for name, value in original.items() if name not in dropped}
        # The original code sets rope_scaling to None whatever the file says.
        theta = values.pop("rope_theta", None) or (values.pop("rope_parameters", None) or {}).get("rope_theta", 1e6)
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        values["dtype"] = values.pop("torch_dtype", values.get("dtype"))
        values.setdefault("tie_word_embeddings", False)
        config = cls(**values)
        config.architectures = [LlavaVideoForCausalLM.__name__]
        config.vision_config = SiglipVisionConfig(**(tower or _SO400M))
        config.mm_spatial_pool_mode, config.mm_spatial_pool_stride = mode, stride
        # lmms-eval reads these two.
        config.mm_use_im_start_end = False
        config.mm_vision_tower = str(original.get("mm_vision_tower"))
        return config

    @classmethod
    def from_checkpoint(cls, pretrained: str, tower: Mapping[str, Any] | None = None) -> LlavaVideoConfig:
        """Of a checkpoint folder or hub name; its ``model_type`` is not looked at, since the published ones vary.

        A tower other than SO400M is described by a ``vision_config`` entry, or by ``siglip_vision_config.json``
        beside ``config.json``.

        Raises
        ------
        OptionError
            If there is no such checkpoint, or it is not in the original LLaVA-Video layout.
        """
        original = raw_config(pretrained)
        if "mm_projector_type" not in original:
            kind = original.get("model_type", "nameless")
            raise OptionError(
                f"pretrained={pretrained}: is a {kind} checkpoint; this class reads LLaVA-Video's original layout "
                "(lmms-lab/LLaVA-Video-7B-Qwen2 and its like, whose config.json has mm_projector_type)"
            )
        if tower is None and not (tower := original.get("vision_config")):
            beside = cached_file(pretrained, _TOWER_FILE, _raise_exceptions_for_missing_entries=False)
            tower = cls._dict_from_json_file(beside) if beside else None
        published = "siglip-so400m-patch14-384"
        if tower is None and published not in (name := str(original.get("mm_vision_tower"))):
            raise OptionError(f"pretrained={pretrained}: mm_vision_tower={name} is not known; only {published} is")
        try:
            return cls.from_original(original, tower)
        except OptionError as error:
            raise OptionError(f"pretrained={pretrained}: {error}") from None

    @property
    def patches_a_side(self) -> int:
        """How many patches the tower cuts a frame into, along a side."""
        return self.vision_config.image_size // self.vision_config.patch_size


def check_pooling(mode: Any, stride: Any, side: int | None = None) -> None:
    """Raise `OptionError` unless frames, of `side` patches a side where that is known, can be pooled so."""
    if mode not in POOLINGS:
        raise OptionError(f"mm_spatial_pool_mode={mode}: must be one of {', '.join(POOLINGS)}")
    if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
        raise OptionError(f"mm_spatial_pool_stride={stride}: must be a whole number of at least 1")
    if side is not None and stride > side:
        raise OptionError(f"mm_spatial_pool_stride={stride}: a frame is {side} patches wide, so give at most {side}")


def pooled_rows(side: int, mode: str, stride: int) -> int:
    """Rows, and columns, that are left of `side` patches."""
    return math.ceil(side / stride) if mode == "bilinear" else side // stride


def projected(projector: Any, features: Tensor, newline: Tensor, mode: str, stride: int) -> Tensor:
    """Visual tokens of a tower's features ``(frames, patches, tower)``, with `newline` ``(hidden,)`` behind every row.

    Pooling is a mean with weights, and so may come before the last, linear, step of the two-layer projector as well as
    after it, where the original has it; a quarter of the tokens go through that step then.

    Returns
    -------
    Tensor
        ``(frames, rows * (columns + 1), hidden)``.
    """
    first, activation, last = projector
    pooled = last(_pooled(activation(first(features)), mode, stride))
    frames, rows, _, hidden = pooled.shape
    return torch.cat([pooled, newline.to(pooled.device).expand(frames, rows, 1, hidden)], dim=2).flatten(1, 2)


def _pooled(features: Tensor, mode: str, stride: int) -> Tensor:
    """``(frames, patches, width)`` to ``(frames, rows, rows, width)``."""
    frames, patches, width = features.shape
    side = math.isqrt(patches)
    features = features.view(frames, side, side, width).permute(0, 3, 1, 2)
    if mode == "bilinear":
        rows = pooled_rows(side, mode, stride)
        features = F.interpolate(features.contiguous(), size=(rows, rows), mode="bilinear")
    else:
        features = F.avg_pool2d(features, stride)
    return features.permute(0, 2, 3, 1)


class _SiglipTower(SiglipPreTrainedModel):
    """SigLIP up to the last encoder layer but one; `post_layernorm` is in the checkpoints and not used."""

    config: SiglipVisionConfig

    def __init__(self, config: SiglipVisionConfig) -> None:
        config = copy.copy(config)
        config.num_hidden_layers -= 1
        super().__init__(config)
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state


class LlavaVideoModel(Qwen2Model):
    """The decoder, with what turns frames into its visual tokens beside it."""

    config: LlavaVideoConfig

    def __init__(self, config: LlavaVideoConfig) -> None:
        super().__init__(config)
        tower = _SiglipTower(config.vision_config)
        # The original's own nesting: its parameters are called model.vision_tower.vision_tower.vision_model.…
        self.vision_tower = nn.ModuleDict({"vision_tower": nn.ModuleDict({"vision_model": tower})})
        self.mm_projector = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)
        self.post_init()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one frame's tokens; the last column is the newlines."""
        pooling = (self.config.mm_spatial_pool_mode, self.config.mm_spatial_pool_stride)
        rows = pooled_rows(self.config.patches_a_side, *pooling)
        return rows, rows + 1

    def encode_frames(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens of some frames, each pooled, with a newline behind every row.

        Parameters
        ----------
        pixel_values
            ``(frames, 3, size, size)``, normalised to -1..1, any float dtype.

        Returns
        -------
        Tensor
            ``(frames, rows * (columns + 1), hidden)`` in the model's dtype; 210 tokens a frame for 384 pixels and
            bilinear pooling, 182 for average pooling.
        """
        features = self.vision_tower["vision_tower"]["vision_model"](pixel_values)
        pooling = (self.config.mm_spatial_pool_mode, self.config.mm_spatial_pool_stride)
        return projected(self.mm_projector, features, self.image_newline, *pooling)


class LlavaVideoForCausalLM(Qwen2ForCausalLM):
    """LLaVA-Video; as a language model it is fed `inputs_embeds` (see `lmms_flexselect.families.llava_video`)."""

    config: LlavaVideoConfig
    _no_split_modules = ["Qwen2DecoderLayer", "SiglipEncoderLayer", "SiglipVisionEmbeddings"]  # noqa: RUF012

    def __init__(self, config: LlavaVideoConfig) -> None:
        Qwen2PreTrainedModel.__init__(self, config)  # past Qwen2ForCausalLM's, which would build a plain decoder first
        self.model = LlavaVideoModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
