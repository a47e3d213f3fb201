"""FlexSelect-Lite's network for InternVL."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2Model

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.config import IMAGE_TOKEN
from lmms_flexselect.families.internvl.prompt import END, START
from lmms_flexselect.lite.networks import SelectorNetwork as Network
from lmms_flexselect.loading import load_tokenizer


class SelectorNetwork(Network, PreTrainedModel):
    """Reads InternVL's pixel-shuffled tower features through an own ``mlp1``."""

    mark = "mlp1.0.weight"
    published_model_type = "qwen2"
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

    @staticmethod
    def load_tokenizer(path: str) -> Any:
        """A selector's own, which knows a frame's marks.

        Raises
        ------
        OptionError
            If it cannot be read, or does not know them.
        """
        try:
            tokenizer = load_tokenizer(AutoTokenizer, path)
        except OptionError as error:
            raise OptionError(str(error).replace("pretrained=", "selector_path=", 1)) from None
        for mark in (IMAGE_TOKEN, START, END):
            if mark not in tokenizer.get_vocab():
                raise OptionError(f"selector_path={path}: its tokenizer has no token {mark}")
        return tokenizer
