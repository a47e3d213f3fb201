"""Stand-ins for what lmms-eval's `llava_vid` imports from the ``llava`` package.

That package is not on PyPI and needs a transformers of 2024. Upstream's module asks it for 16 names while it is
imported; here they are supplied for that moment, by `upstream_llava_vid`, where the package is absent. Where it is
installed we refuse: half of one and half of the other would be neither.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, StoppingCriteria

from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.chatml import END, SYSTEM, chatml, marked_token_ids
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig

IMAGE_TOKEN_INDEX = VIDEO_TOKEN
DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"

_UPSTREAM = "lmms_eval.models.simple.llava_vid"
_MODULES = (
    "llava",
    "llava.constants",
    "llava.conversation",
    "llava.mm_utils",
    "llava.model",
    "llava.model.builder",
    "llava.model.language_model",
    "llava.model.language_model.llava_llama",
    "llava.model.language_model.llava_qwen",
)


def upstream_llava_vid() -> ModuleType:
    """lmms-eval's module of that name, imported with the stand-ins; they are gone again when this returns.

    Raises
    ------
    FlexSelectError
        If the ``llava`` package is installed.
    """
    if "llava" in sys.modules or _installed():
        raise FlexSelectError(
            "llava_vid_flexselect brings its own LLaVA-Video and cannot share an environment with the llava package: "
            "uninstall it (pip uninstall llava), or use another environment"
        )
    if _UPSTREAM in sys.modules:
        return sys.modules[_UPSTREAM]
    stand_in = ModuleType("llava")
    vars(stand_in).update({name: value for name, value in globals().items() if not name.startswith("_")})
    sys.modules.update(dict.fromkeys(_MODULES, stand_in))
    try:
        return import_module(_UPSTREAM)
    finally:
        for name in _MODULES:
            sys.modules.pop(name, None)


def _installed() -> bool:
    spec = find_spec("llava")
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


class SeparatorStyle(Enum):
    """How turns are told apart; upstream asks only whether it is `TWO`."""

    CHATML = auto()
    TWO = auto()


@dataclass
class Conversation:
    """A chat in ChatML, as Qwen2's own template writes it.

    Attributes
    ----------
    system
        Text of the system turn.
    messages
        Role and text of each turn so far; None where the model is to go on.
    """

    system: str = SYSTEM
    messages: list[tuple[str, str | None]] = field(default_factory=list)
    roles: tuple[str, str] = ("user", "assistant")
    sep: str = END
    sep2: str | None = None
    sep_style: SeparatorStyle = SeparatorStyle.CHATML

    def copy(self) -> Conversation:
        """A chat of its own."""
        return copy.deepcopy(self)

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn."""
        self.messages.append((role, message))

    def get_prompt(self) -> str:
        """The chat as one text, open at its end where the last turn has no text yet."""
        return chatml(self.messages, self.system)


# Two names of one template; every other one belongs to models that are not built on Qwen2.
conv_templates = {"qwen_1_5": Conversation(), "qwen_2": Conversation()}


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops when every row's answer holds one of the keywords.

    Parameters
    ----------
    keywords
        Texts.
    tokenizer
        Turns new tokens into text.
    input_ids
        The prompt; not read, since generating from embeddings shows new tokens alone.
    """

    def __init__(self, keywords: list[str], tokenizer: Any, input_ids: Tensor) -> None:
        self._keywords = keywords
        self._tokenizer = tokenizer
        self._longest = max(len(tokenizer(keyword, add_special_tokens=False).input_ids) for keyword in keywords)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """See `transformers.StoppingCriteria`."""
        ends = self._tokenizer.batch_decode(input_ids[:, -self._longest :], skip_special_tokens=False)
        found = [any(keyword in end for keyword in self._keywords) for end in ends]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> Any:
    """Token ids of a prompt with `image_token_index` where it says ``<image>``: a list, or ``(tokens,)`` int64."""
    ids = marked_token_ids(prompt, tokenizer, DEFAULT_IMAGE_TOKEN, image_token_index)
    return torch.tensor(ids) if return_tensors == "pt" else ids


def get_model_name_from_path(path: str) -> str:
    """The last part of a checkpoint's path; upstream hands it on to what loads the model, and that is ours."""
    return str(path).rstrip("/").split("/")[-1]


def load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
    """Stock ``llava_vid`` is still not to be had; `LlavaVidFlexSelect` loads in its own way.

    Raises
    ------
    OptionError
        Always.
    """
    raise OptionError(
        "--model llava_vid needs the llava package; --model llava_vid_flexselect with selector=none runs the same "
        "model without it"
    )


class LlavaConfig(PreTrainedConfig):
    """Registered by upstream under its name; nothing here is built on Llama."""

    model_type = "llava_llama"


LlavaQwenConfig = LlavaVideoConfig
