"""A small native InternVL with random weights, and the same weights in the original's names and fused matrices.

The way back is written out name by name here, so that code which goes the other way by patterns cannot be wrong alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, Qwen2Config

from tests.support.internvl_tokenizers import vocabulary

IMAGE_SIZE, PATCH = 56, 14
TOWER = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ROPE_THETA, ROPE_FACTOR = 20000.0, 2.0


def random_native(llm: str, vit: str, tied: bool = False, seed: int = 7) -> InternVLForConditionalGeneration:
    """A native model with random weights, float32; a new one at every call.

    Parameters
    ----------
    llm
        ``"internlm2"`` or ``"qwen2"``.
    vit
        ``"300m"`` or ``"6b"``: which InternViT it is like.
    tied
        Whether the output layer is the embeddings.
    """
    size, added = vocabulary(llm)
    text_class = {"internlm2": LlamaConfig, "qwen2": Qwen2Config}[llm]
    text = text_class(
        **TEXT,
        vocab_size=size,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "dynamic", "factor": ROPE_FACTOR, "rope_theta": ROPE_THETA},
        tie_word_embeddings=tied,
    )
    config = InternVLConfig(
        text_config=text,
        vision_config={
            **TOWER,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "norm_type": "layer_norm" if vit == "300m" else "rms_norm",
            "attention_bias": vit == "300m",
            "use_qk_norm": vit == "6b",
        },
        image_token_id=added["<IMG_CONTEXT>"],
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    model = InternVLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Much larger than a fresh model's, so that attention is far from uniform and nothing is hidden by a zero.
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            one = ("norm" in name and name.endswith("weight")) or "lambda" in name
            weight.copy_(noise / noise[0].numel() ** 0.5 if weight.ndim > 1 else 0.1 * noise + one)
    return model


def original_weights(model: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    """A native model's weights in the original's names, with its fused matrices."""
    given = model.state_dict()
    weights = {}

    def move(new: str, old: str, with_bias: bool = True) -> None:
        for kind in ("weight", "bias") if with_bias else ("weight",):
            if f"{old}.{kind}" in given:
                weights[f"{new}.{kind}"] = given[f"{old}.{kind}"]

    tower = "model.vision_tower"
    weights["vision_model.embeddings.class_embedding"] = given[f"{tower}.embeddings.cls_token"]
    weights["vision_model.embeddings.position_embedding"] = given[f"{tower}.embeddings.position_embeddings"]
    move("vision_model.embeddings.patch_embedding", f"{tower}.embeddings.patch_embeddings.projection")
    for i in range(TOWER["num_hidden_layers"]):
        new, old = f"vision_model.encoder.layers.{i}", f"{tower}.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            parts = [given.get(f"{old}.attention.{part}_proj.{kind}") for part in "qkv"]
            if parts[0] is not None:
                weights[f"{new}.attn.qkv.{kind}"] = torch.cat(parts)
        for one, other in (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "mlp.fc1")):
            move(f"{new}.{one}", f"{old}.{other}")
        for one, other in (("mlp.fc2", "mlp.fc2"), ("attn.proj", "attention.projection_layer")):
            move(f"{new}.{one}", f"{old}.{other}")
        for part in "qk":
            move(f"{new}.attn.{part}_norm", f"{old}.attention.{part}_norm")
        weights[f"{new}.ls1"], weights[f"{new}.ls2"] = given[f"{old}.lambda_1"], given[f"{old}.lambda_2"]
    for number, name in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
        move(f"mlp1.{number}", f"model.multi_modal_projector.{name}")

    if isinstance(model.config.text_config, Qwen2Config):
        for name in given:
            if name.startswith("model.language_model."):
                weights[name.replace("model.language_model.", "language_model.model.")] = given[name]
        weights["language_model.lm_head.weight"] = given["lm_head.weight"]
        return weights
    weights["language_model.model.tok_embeddings.weight"] = given["model.language_model.embed_tokens.weight"]
    weights["language_model.output.weight"] = given["lm_head.weight"]
    move("language_model.model.norm", "model.language_model.norm")
    for i in range(TEXT["num_hidden_layers"]):
        new, old = f"language_model.model.layers.{i}", f"model.language_model.layers.{i}"
        weights[f"{new}.attention.wqkv.weight"] = interleaved(
            *(given[f"{old}.self_attn.{p}_proj.weight"] for p in "qkv")
        )
        move(f"{new}.attention.wo", f"{old}.self_attn.o_proj")
        for one, other in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            move(f"{new}.feed_forward.{one}", f"{old}.mlp.{other}")
        move(f"{new}.attention_norm", f"{old}.input_layernorm")
        move(f"{new}.ffn_norm", f"{old}.post_attention_layernorm")
    return weights


def interleaved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """InternLM2's one matrix: for each key head the queries that share it, its key, its value, head by head."""
    size = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    shared = TEXT["num_attention_heads"] // TEXT["num_key_value_heads"]
    rows = []
    for head in range(TEXT["num_key_value_heads"]):
        for query in range(head * shared, (head + 1) * shared):
            rows.append(q[query * size : (query + 1) * size])
        rows += [k[head * size : (head + 1) * size], v[head * size : (head + 1) * size]]
    return torch.cat(rows)
