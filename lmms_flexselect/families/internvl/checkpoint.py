"""Loading InternVL into transformers' own class, from its original layout too: no remote code, no step before it.

Original weights get their native names, and fused projections are cut apart, in a state dict of views of the mapped
files. `from_pretrained` does the rest as for any checkpoint: dtypes, devices, offloading, buffers that are in no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.chatml import END
from lmms_flexselect.families.internvl.config import ORIGINAL_TYPE, added_tokens, internvl_config, read_config
from lmms_flexselect.families.internvl.tokenizer import stop_ids
from lmms_flexselect.loading import load_whole

_TOWER, _TEXT = "model.vision_tower.", "model.language_model."

# Original names, as patterns, and what becomes of them; every one that matches is applied, in this order.
_NAMES = {
    r"^mlp1\.0\.": "model.multi_modal_projector.layer_norm.",
    r"^mlp1\.1\.": "model.multi_modal_projector.linear_1.",
    r"^mlp1\.3\.": "model.multi_modal_projector.linear_2.",
    r"^vision_model\.embeddings\.class_embedding$": f"{_TOWER}embeddings.cls_token",
    r"^vision_model\.embeddings\.position_embedding$": f"{_TOWER}embeddings.position_embeddings",
    r"^vision_model\.embeddings\.patch_embedding\.": f"{_TOWER}embeddings.patch_embeddings.projection.",
    r"^vision_model\.encoder\.layers\.(\d+)\.": rf"{_TOWER}encoder.layer.\1.",
    r"(?<=\d)\.norm1\.": ".layernorm_before.",
    r"(?<=\d)\.norm2\.": ".layernorm_after.",
    r"(?<=\d)\.ls([12])$": r".lambda_\1",
    r"(?<=\d)\.attn\.proj\.": ".attention.projection_layer.",
    r"(?<=\d)\.attn\.": ".attention.",
    r"^language_model\.(output|lm_head)\.": "lm_head.",
    r"^language_model\.model\.": _TEXT,
    r"(?<=model)\.tok_embeddings\.": ".embed_tokens.",
    r"(?<=\d)\.attention\.wo\.": ".self_attn.o_proj.",
    r"(?<=\d)\.attention\.wqkv\.": ".self_attn.wqkv.",
    r"(?<=\d)\.feed_forward\.w1\.": ".mlp.gate_proj.",
    r"(?<=\d)\.feed_forward\.w3\.": ".mlp.up_proj.",
    r"(?<=\d)\.feed_forward\.w2\.": ".mlp.down_proj.",
    r"(?<=\d)\.attention_norm\.": ".input_layernorm.",
    r"(?<=\d)\.ffn_norm\.": ".post_attention_layernorm.",
}


def load_model(
    pretrained: str,
    dtype: torch.dtype,
    device_map: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    config: InternVLConfig | None = None,
    **others: Any,
) -> InternVLForConditionalGeneration:
    """A checkpoint folder or hub name, in its original or in transformers' layout.

    The host holds views of the mapped files, and, of an InternLM2 decoder alone, copies of its attention's inputs: at
    most 4.8 GB, for the 26B size. The 78B size can be loaded wherever the devices can hold it.

    Parameters
    ----------
    pretrained, dtype, device_map, attn_implementation, revision
        As for `from_pretrained`.
    config
        What `read_config` gave, perhaps altered; read here if None.
    others
        Further arguments of `from_pretrained`, ``offload_folder`` and ``max_memory`` for instance.

    Raises
    ------
    OptionError
        If the configuration is refused (see `read_config`), a file is missing or damaged, or a weight is missing,
        misshapen or unknown; the message names one.
    """
    if config is None:
        config = read_config(pretrained, revision)
    if attn_implementation is not None:
        others["attn_implementation"] = attn_implementation
    source: dict[str, Any] = {"pretrained_model_name_or_path": pretrained, "revision": revision}
    original = internvl_config(pretrained, revision)["model_type"] == ORIGINAL_TYPE
    if original:
        try:
            weights = dict(_native_weights(_files(pretrained, revision), config))
        except OptionError as error:
            raise OptionError(f"pretrained={pretrained}: {error}") from None
        source = {"pretrained_model_name_or_path": None, "state_dict": weights}
    model = load_whole(
        InternVLForConditionalGeneration,
        pretrained,
        dtype,
        all_known=True,
        source=source,
        config=config,
        device_map=device_map,
        **others,
    )
    if original:
        model.config.name_or_path = model.name_or_path = pretrained
        model.generation_config = _generation_config(pretrained, revision, model.config)
    _make_rotary_stateless(model.model.language_model)
    return model


def _files(pretrained: str, revision: str | None) -> list[str]:
    """Paths of the safetensors files, in transformers' order of preference."""

    def find(name: str) -> str | None:
        return cached_file(pretrained, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    if single := find(SAFE_WEIGHTS_NAME):
        return [single]
    if not (index := find(SAFE_WEIGHTS_INDEX_NAME)):
        raise OptionError(f"has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}")
    try:
        files, _ = get_checkpoint_shard_files(pretrained, index, revision=revision)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise OptionError(f"{SAFE_WEIGHTS_INDEX_NAME} is not an index of weights") from None
    if missing := [Path(file).name for file in files if not Path(file).is_file()]:
        raise OptionError(f"{len(missing)} of {len(files)} weight files missing, among them {missing[0]}")
    return files


def _native_weights(files: Iterable[str], config: InternVLConfig) -> Iterator[tuple[str, Tensor]]:
    """Every weight of these files by its native name; an unknown one under whatever its name has become."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118
                    yield from _native(name, shard.get_tensor(name), config)
        except SafetensorError as error:
            raise OptionError(f"{Path(file).name} cannot be read ({error})") from None


def _native(original_name: str, weight: Tensor, config: InternVLConfig) -> Iterator[tuple[str, Tensor]]:
    """One original weight as one native weight, or three."""
    name = original_name
    for pattern, replacement in _NAMES.items():
        name = re.sub(pattern, replacement, name)
    if ".wqkv." in name:
        # With each key head lie the queries that share it, its key and its value: (key heads, queries + 2, head size).
        text = config.text_config
        queries = text.num_attention_heads // text.num_key_value_heads
        shape = (text.num_key_value_heads, queries + 2, text.hidden_size // text.num_attention_heads)
    elif name.startswith(_TOWER) and ".qkv." in name:
        queries, shape = 1, (1, 3, config.vision_config.hidden_size)
    else:
        # An output layer that is the embeddings may be in the file as well; the original does not look at it either.
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            yield name, weight
        return
    if weight.shape[:1] != (math.prod(shape),):
        raise OptionError(f"1 weight(s) of another shape, among them {original_name}")
    parts = weight.unflatten(0, shape).split((queries, 1, 1), dim=1)
    for letter, part in zip("qkv", parts, strict=True):
        yield re.sub("w?qkv", f"{letter}_proj", name), part.flatten(0, 2)


def _generation_config(pretrained: str, revision: str | None, config: PreTrainedConfig) -> GenerationConfig:
    """The checkpoint's own where it has one, which ends an answer at ``<|im_end|>`` too."""
    try:
        generation = GenerationConfig.from_pretrained(pretrained, revision=revision)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    generation.eos_token_id = stop_ids(added_tokens(pretrained, revision).get(END), generation)
    return generation


def _make_rotary_stateless(text_model: nn.Module) -> None:
    """Dynamic NTK as a function of the prompt at hand alone.

    transformers keeps the frequencies of a prompt longer than `max_position_embeddings`: 5.2 for every later one up to
    that limit, and 5.23 for later ones beyond it that are shorter than that prompt.
    """
    rope = getattr(text_model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":
        text_model.rotary_emb.register_forward_pre_hook(_forget)


def _forget(rotary: Any, args: Any) -> None:
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    rotary.inv_freq = rotary.original_inv_freq
