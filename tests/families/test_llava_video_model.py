"""LLaVA-Video's tower, projector and pooling against plain arithmetic, and checkpoints in the original layout."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlavaOnevisionConfig

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.llava_video import model as llava_video_model
from lmms_flexselect.families.llava_video.model import LlavaVideoConfig, LlavaVideoForCausalLM
from tests.support.llava_checkpoint import TOWER, original_config, original_shapes, write_checkpoint
from tests.support.random_models import PATCH, TOWER_HEADS, TOWER_LAYERS, llava_video

VISION = "model.vision_tower.vision_tower.vision_model"


def tower_features(weights, pixels, heads, layers, patch):
    """SigLIP by hand: what leaves the last but one of `layers` encoder layers, ``(frames, patches, width)``."""
    side = pixels.shape[-1] // patch
    cut = pixels[..., : side * patch, : side * patch]
    cut = cut.reshape(len(pixels), 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    embeddings = f"{VISION}.embeddings"
    x = cut @ weights[f"{embeddings}.patch_embedding.weight"].flatten(1).T
    x = x + weights[f"{embeddings}.patch_embedding.bias"] + weights[f"{embeddings}.position_embedding.weight"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    for number in range(layers - 1):
        layer = f"{VISION}.encoder.layers.{number}"
        normed = norm(x, f"{layer}.layer_norm1")
        q, k, v = (linear(normed, f"{layer}.self_attn.{name}_proj").chunk(heads, -1) for name in "qkv")
        read = []
        for of_head in range(heads):
            logits = q[of_head] @ k[of_head].transpose(-1, -2) / math.sqrt(q[of_head].shape[-1])
            exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
            read.append(exponentials / exponentials.sum(-1, keepdim=True) @ v[of_head])
        x = x + linear(torch.cat(read, -1), f"{layer}.self_attn.out_proj")
        inner = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"{layer}.mlp.fc2")
    return x


def projected(weights, features):
    x = features @ weights["model.mm_projector.0.weight"].T + weights["model.mm_projector.0.bias"]
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return x @ weights["model.mm_projector.2.weight"].T + weights["model.mm_projector.2.bias"]


def bilinear_weights(side, rows):
    """``(rows, side)``: how each pooled row is made of the rows before, with centres of cells as their places."""
    weights = torch.zeros(rows, side, dtype=torch.float64)
    for row in range(rows):
        place = max((row + 0.5) * side / rows - 0.5, 0)
        below = int(place)
        weights[row, below] += 1 - (place - below)
        weights[row, min(below + 1, side - 1)] += place - below
    return weights


def visual_tokens(weights, pixels, pooling, stride, heads=TOWER_HEADS, layers=TOWER_LAYERS, patch=PATCH):
    """One frame after the other, row by row, ``(frames, tokens, hidden)`` float64: the model's parameters alone."""
    weights = {name: weight.double() for name, weight in weights.items()}
    features = projected(weights, tower_features(weights, pixels.double(), heads, layers, patch))
    side = math.isqrt(features.shape[1])
    frames = []
    for frame in features.unflatten(1, (side, side)):
        if pooling == "bilinear":
            mixed = bilinear_weights(side, math.ceil(side / stride))
            pooled = torch.einsum("rs,ct,sth->rch", mixed, mixed, frame)
        else:
            steps = range(0, side - stride + 1, stride)
            pooled = torch.stack(
                [
                    torch.stack([frame[r : r + stride, c : c + stride].flatten(0, 1).mean(0) for c in steps])
                    for r in steps
                ]
            )
        rows = [torch.cat([row, weights["model.image_newline"][None]]) for row in pooled]
        frames.append(torch.cat(rows))
    return torch.stack(frames)


def random_pixels(frames, size, seed=0):
    return torch.rand(frames, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def relative_error(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["bilinear", "average"])
@pytest.mark.parametrize("size", [56, 60, 70, 98])  # 4x4, 4x4 with four pixels left over, 5x5 and 7x7 patches
def test_frames_become_the_tokens_that_plain_arithmetic_makes(size, pooling, stride):
    for seed in (0, 1):
        model = llava_video(seed, "sdpa", size, pooling, stride)
        pixels = random_pixels(2, size, seed)
        expected = visual_tokens(model.state_dict(), pixels, pooling, stride)
        with torch.no_grad():
            tokens = model.model.encode_frames(pixels)
            in_float64 = model.double().model.encode_frames(pixels.double())
        rows, columns = model.model.grid
        assert tokens.shape == expected.shape == (2, rows * columns, 64)
        assert relative_error(tokens, expected) < 1e-5
        assert relative_error(in_float64, expected) < 1e-13


def test_eager_attention_is_no_other():
    pixels = random_pixels(3, 70)
    with torch.no_grad():
        tokens = llava_video(0, "eager").model.encode_frames(pixels)
    assert relative_error(tokens, visual_tokens(llava_video(0).state_dict(), pixels, "bilinear", 2)) < 1e-5


@pytest.mark.parametrize(
    ("size", "pooling", "stride", "grid"),
    [
        (384, "bilinear", 2, (14, 15)),
        (384, "average", 2, (13, 14)),
        (384, "bilinear", 4, (7, 8)),
        (384, "average", 4, (6, 7)),
        (70, "bilinear", 2, (3, 4)),
        (70, "average", 2, (2, 3)),
        (98, "bilinear", 3, (3, 4)),
        (98, "average", 3, (2, 3)),
        (56, "bilinear", 2, (2, 3)),
        (70, "average", 1, (5, 6)),
    ],
)
def test_the_grid_of_a_frame(size, pooling, stride, grid):
    """210 and 182 tokens a frame for the published checkpoints."""
    assert llava_video(0, "sdpa", size, pooling, stride).model.grid == grid


def test_each_row_ends_with_a_newline():
    model = llava_video(0)
    with torch.no_grad():
        tokens = model.model.encode_frames(random_pixels(2, 70))
    newline = (tokens == model.model.image_newline).all(-1)
    assert newline.tolist() == [[False, False, False, True] * 3] * 2


def test_frames_are_encoded_one_by_one():
    model = llava_video(0).double().model
    pixels = random_pixels(5, 70).double()
    with torch.no_grad():
        together = model.encode_frames(pixels)
        for size in (1, 2, 4):
            chunks = torch.cat([model.encode_frames(chunk) for chunk in pixels.split(size)])
            torch.testing.assert_close(chunks, together, rtol=0, atol=1e-12)


def load(folder, dtype=torch.float32, attention="sdpa", **kwargs):
    config = LlavaVideoConfig.from_checkpoint(str(folder))
    model, info = LlavaVideoForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True, **kwargs
    )
    assert not any(info.values()), info
    return model.eval()


def stored(folder):
    """The weights as they lie in a checkpoint's files."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        assert not weights.keys() & load_file(file).keys()
        weights |= load_file(file)
    return weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "llava_video")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_original_checkpoint_is_loaded_whole(checkpoint, dtype, attention):
    assert len(list(checkpoint.glob("*.safetensors"))) == 2
    model = load(checkpoint, dtype, attention)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    state, files = model.state_dict(), stored(checkpoint)
    assert state.keys() == files.keys() == original_shapes(original_config()).keys()
    for name, weight in files.items():
        assert torch.equal(state[name], weight.to(dtype)), name
    # The rotary frequencies are no parameter and stay exact, whatever the dtype.
    exact = 1 / 1e6 ** (torch.arange(0, 16, 2) / 16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, exact, rtol=1e-6, atol=0)

    tower = model.model.vision_tower["vision_tower"]["vision_model"]
    attentions = [*(layer.self_attn for layer in model.model.layers), *(x.self_attn for x in tower.encoder.layers)]
    assert {module.config._attn_implementation for module in attentions} == {attention}
    pixels = random_pixels(2, TOWER["image_size"])
    expected = visual_tokens(files, pixels, "bilinear", 2, TOWER["num_attention_heads"])
    with torch.no_grad():
        tokens = model.model.encode_frames(pixels)
        logits = model(inputs_embeds=tokens.flatten(0, 1)[None]).logits
    assert tokens.dtype == logits.dtype == dtype
    assert relative_error(tokens, expected) < {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-5}[dtype]
    assert bool(logits.isfinite().all())


def test_the_files_dtype_is_kept_where_none_is_asked_for(checkpoint):
    assert load(checkpoint, "auto").dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["llava", "llava_qwen", "qwen2", "no_such_type"])
def test_the_model_type_does_not_matter(tmp_path, checkpoint, model_type):
    other = load(write_checkpoint(tmp_path, model_type=model_type)).state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in load(checkpoint).state_dict().items())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 20000.0},
        {"rope_theta": 20000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0}},
    ],
)
def test_the_base_of_the_rotary_embedding_is_read_and_no_scaling(tmp_path, rope):
    """As in the original, which sets rope_scaling to None whatever the file says."""
    rotary = load(write_checkpoint(tmp_path, **rope)).model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, 1 / 20000 ** (torch.arange(0, 16, 2) / 16), rtol=1e-6, atol=0)
    assert rotary.attention_scaling == 1


def test_tied_embeddings(tmp_path):
    """As of the small decoders, whose checkpoints have no lm_head."""
    model = load(write_checkpoint(tmp_path, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, stored(tmp_path)["model.embed_tokens.weight"].float())


@pytest.mark.parametrize("shard_size", ["5GB", "200KB"])
@pytest.mark.parametrize("settings", [{}, {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 3}])
def test_a_saved_model_is_an_original_checkpoint_again(tmp_path, settings, shard_size):
    written = write_checkpoint(tmp_path / "written", torch_dtype="float32", **settings)
    model = load(written)
    for turn in ("once", "twice"):
        model.save_pretrained(tmp_path / turn, max_shard_size=shard_size)
        files = list((tmp_path / turn).glob("*.safetensors"))
        assert (len(files) > 1) == (shard_size == "200KB")
        names = [name for file in files for name in safe_open(file, "pt").keys()]  # noqa: SIM118
        assert sorted(names) == sorted(original_shapes(original_config()))
        original = stored(written)
        assert all(torch.equal(weight, original[name]) for name, weight in stored(tmp_path / turn).items())
        again = load(tmp_path / turn)
        assert again.model.grid == model.model.grid
        for name in ("mm_spatial_pool_mode", "mm_spatial_pool_stride", "hidden_size", "rope_parameters"):
            assert getattr(again.config, name) == getattr(model.config, name), name
        assert again.config.vision_config.num_hidden_layers == TOWER["num_hidden_layers"]
        model = again


def test_names_of_the_published_checkpoints():
    """A few of them letter by letter, so that support and model cannot be wrong alike."""
    published = {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.image_newline",
        "model.layers.0.self_attn.q_proj.bias",
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        "model.norm.weight",
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.out_proj.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
        "model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
    }
    names = llava_video(0).state_dict().keys()
    assert published <= names
    assert not [name for name in names if f"encoder.layers.{TOWER_LAYERS - 1}." in name or ".head." in name]


def test_the_tower_of_the_published_checkpoints_needs_no_description(tmp_path):
    """Their config.json gives its name alone."""
    (tmp_path / "config.json").write_text(json.dumps(original_config(vision_config=None)))
    tower = LlavaVideoConfig.from_checkpoint(str(tmp_path)).vision_config
    assert (tower.hidden_size, tower.intermediate_size, tower.num_attention_heads) == (1152, 4304, 16)
    assert (tower.num_hidden_layers, tower.image_size, tower.patch_size) == (27, 384, 14)
    assert (tower.hidden_act, tower.layer_norm_eps, tower.num_channels) == ("gelu_pytorch_tanh", 1e-6, 3)


def test_a_tower_described_beside_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(original_config(vision_config=None, mm_vision_tower="our/own")))
    (tmp_path / "siglip_vision_config.json").write_text(json.dumps(TOWER))
    assert LlavaVideoConfig.from_checkpoint(str(tmp_path)).vision_config.hidden_size == TOWER["hidden_size"]


def test_pooling_where_a_config_does_not_say():
    original = original_config()
    del original["mm_spatial_pool_mode"], original["mm_spatial_pool_stride"]
    config = LlavaVideoConfig.from_original(original, TOWER)
    assert (config.mm_spatial_pool_mode, config.mm_spatial_pool_stride) == ("bilinear", 2)


BAD = {
    "mm_projector_type": "linear",
    "mm_vision_select_layer": -1,
    "mm_newline_position": "one_token",
    "mm_patch_merge_type": "flat",
    "add_faster_video": True,
    "mm_use_im_start_end": True,
}


@pytest.mark.parametrize("name", llava_video_model._REQUIRED)
def test_what_this_code_does_not_do_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(original_config(**{name: BAD[name]})))
    with pytest.raises(OptionError, match=rf"^pretrained=.*: {name}={BAD[name]}: only .* is supported$"):
        LlavaVideoConfig.from_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("mm_spatial_pool_mode", "max", "must be one of bilinear, average"),
        ("mm_spatial_pool_stride", -1, "must be a whole number of at least 1"),
        ("mm_spatial_pool_stride", 1.5, "must be a whole number of at least 1"),
        ("mm_spatial_pool_stride", True, "must be a whole number of at least 1"),
        ("mm_spatial_pool_stride", 0, "must be a whole number of at least 1"),
    ],
)
def test_a_pooling_that_does_not_exist_is_refused(tmp_path, name, value, complaint):
    (tmp_path / "config.json").write_text(json.dumps(original_config(**{name: value})))
    with pytest.raises(OptionError, match=rf"^pretrained=.*: {name}={value}: {complaint}$"):
        LlavaVideoConfig.from_checkpoint(str(tmp_path))


def test_a_stride_wider_than_a_frame_is_refused():
    llava_video_model.check_pooling("average", 4, side=4)
    wanted = "^mm_spatial_pool_stride=5: a frame is 4 patches wide, so give at most 4$"
    with pytest.raises(OptionError, match=wanted):
        llava_video_model.check_pooling("average", 5, side=4)


def test_another_layout_is_refused(tmp_path):
    LlavaOnevisionConfig().save_pretrained(tmp_path)
    wanted = r"^pretrained=.*: is a llava_onevision checkpoint; .*original layout \(lmms-lab/LLaVA-Video-7B-Qwen2 .*\)$"
    with pytest.raises(OptionError, match=wanted):
        LlavaVideoConfig.from_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", [None, "", "not json"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(OptionError, match=r"^pretrained=\S+: no checkpoint could be read there \([^\n]+\)$"):
        LlavaVideoConfig.from_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such/model"])
def test_a_missing_checkpoint_is_refused(name):
    with pytest.raises(OptionError, match=rf"^pretrained={name}: no checkpoint could be read there \([^\n]+\)$"):
        LlavaVideoConfig.from_checkpoint(name)


def test_an_unknown_tower_is_refused(tmp_path):
    clip = "openai/clip-vit-large-patch14-336"
    (tmp_path / "config.json").write_text(json.dumps(original_config(vision_config=None, mm_vision_tower=clip)))
    wanted = rf"^pretrained=\S+: mm_vision_tower={clip} is not known; only siglip-so400m-patch14-384 is$"
    with pytest.raises(OptionError, match=wanted):
        LlavaVideoConfig.from_checkpoint(str(tmp_path))
