"""What a FlexSelect-Lite selector's network is, whatever family it belongs to.

A network is a small decoder with an own projection of the VideoLLM's tower features beside it, its modules nested so
that the published parameter names load and save as they are. Each family names its own (`FamilySpec.selector_network`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.spec import families, load
from lmms_flexselect.families.spec import family as family_named


@dataclass(frozen=True)
class Tower:
    """What a VideoLLM offers to a FlexSelect-Lite selector.

    Attributes
    ----------
    family
        Its name (see `FamilySpec`).
    width
        Of the features that its projector reads.
    reading
        What a selector must read alike, by the names of its ``config.json`` (pooling, patches that become a token).
    """

    family: str
    width: int
    reading: Mapping[str, Any] = field(default_factory=dict)


class SelectorNetwork:
    """Mixed into a transformers model, which brings ``config_class``.

    Attributes
    ----------
    mark
        A tensor that only this family's selectors have.
    published_model_type
        ``model_type`` in a published ``config.json``.
    reading_defaults
        What a published ``config.json`` that does not say so was made for (see `Tower.reading`).
    embed_tokens
        Of the decoder, where the network is its own decoder.
    """

    mark: ClassVar[str]
    published_model_type: ClassVar[str]
    reading_defaults: ClassVar[Mapping[str, Any]] = {}
    embed_tokens: nn.Module

    @property
    def decoder(self) -> Any:
        """What has ``layers[i].self_attn``: scores are read in its last layer, and its final norm is not used."""
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings ``(tokens, hidden)``."""
        return self.embed_tokens(ids)

    def project(self, features: Tensor) -> Tensor:
        """Visual tokens from what the VideoLLM's own projector reads, one for each of its tokens."""
        raise NotImplementedError

    @staticmethod
    def complete(words: dict[str, Any]) -> None:
        """Add to a configuration what a decoder of a text model alone does not say."""

    @staticmethod
    def teacher_projector(model: Any) -> dict[str, Tensor] | None:
        """The VideoLLM's projector, where a new network starts from it and keeps it frozen; None where it does not."""
        return None

    def take_projector(self, teacher: Mapping[str, Tensor]) -> None:
        """Start from `teacher_projector`, frozen."""
        raise NotImplementedError

    @staticmethod
    def load_tokenizer(path: str) -> Any:
        """The tokenizer that selectors of this family bring along; None where they read the model's token ids."""
        return None


def network_of(family: str) -> Any:
    """The network class of a family.

    Raises
    ------
    OptionError
        If there is no such family, or it has no FlexSelect-Lite selectors.
    """
    if (path := family_named(family).selector_network) is None:
        raise OptionError(f"family={family}: has no FlexSelect-Lite selectors; those with are {', '.join(networks())}")
    return load(path)


def networks() -> dict[str, Any]:
    """The network classes by the names of their families."""
    return {name: load(spec.selector_network) for name, spec in families().items() if spec.selector_network}
