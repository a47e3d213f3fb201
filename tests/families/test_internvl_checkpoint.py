"""Weights of InternVL2.5's original layout, written in code, against plain arithmetic and native models."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from accelerate.utils import named_module_tensors
from safetensors.torch import load_file

from lmms_flexselect.errors import OptionError
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.config import read_config
from tests.support.internvl_checkpoint import write_original
from tests.support.internvl_oracle import original_features
from tests.support.internvl_tokenizers import vocabulary
from tests.support.internvl_weights import IMAGE_SIZE, ROPE_FACTOR, ROPE_THETA, TEXT, TOWER, random_native

# accelerate's own layout names InternViT's class embedding, a parameter beside the modules, and then warns of the name.
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match")

KINDS = list(itertools.product(("internlm2", "qwen2"), ("300m", "6b")))
HEAD = TEXT["hidden_size"] // TEXT["num_attention_heads"]
LIMIT = TEXT["max_position_embeddings"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders by decoder and tower."""
    folder = tmp_path_factory.mktemp("internvl2_5")
    return {kind: write_original(folder / "-".join(kind), *kind) for kind in KINDS}


@pytest.fixture
def folder(written):
    return str(written["internlm2", "300m"])


def stored(folder):
    weights: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    return weights


def load(folder, dtype=torch.float32, **options):
    return load_model(str(folder), dtype, **options)


def random_pixels(frames=2, seed=0):
    return torch.rand(frames, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed)) * 4 - 2


@torch.no_grad()
def logits(model, length, frames=2):
    """Of a prompt of that many tokens, four of them a frame."""
    ids = torch.randint(0, 200, (1, length), generator=torch.Generator().manual_seed(length))
    ids[:, 2 : 2 + 4 * frames] = model.config.image_token_id
    mask = torch.ones_like(ids)
    return model(input_ids=ids, pixel_values=random_pixels(frames).to(model.dtype), attention_mask=mask).logits


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_goes_where_it_belongs(written, kind):
    native, loaded = random_native(*kind), load(written[kind])
    assert loaded.state_dict().keys() == native.state_dict().keys()
    for name, weight in native.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    for length in (20, LIMIT + 30):
        torch.testing.assert_close(logits(loaded, length), logits(native, length), rtol=0, atol=1e-5)


@pytest.mark.parametrize("vit", ["300m", "6b"])
@pytest.mark.parametrize("select_layer", [-1, -2])
def test_visual_tokens_are_the_originals(tmp_path, vit, select_layer):
    folder = write_original(tmp_path, vit=vit, select_layer=select_layer)
    with torch.no_grad():
        features = load(folder).get_image_features(random_pixels(), return_dict=True).pooler_output
    expected = original_features(stored(folder), random_pixels(), vit, TOWER["num_hidden_layers"] + 1 + select_layer)
    assert float((features.double() - expected).norm() / expected.norm()) < 1e-5


def test_the_fused_matrices_are_cut_as_the_original_cuts_their_output(written):
    weights, model = stored(written["internlm2", "300m"]), load(written["internlm2", "300m"])
    generator = torch.Generator().manual_seed(1)
    heads, key_heads = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
    for number, layer in enumerate(model.model.language_model.layers):
        x = torch.randn(5, TEXT["hidden_size"], generator=generator)
        fused = x @ weights[f"language_model.model.layers.{number}.attention.wqkv.weight"].T
        # (tokens, key heads, queries of each + key + value, head size)
        fused = fused.view(5, key_heads, heads // key_heads + 2, HEAD)
        attention = layer.self_attn
        parts = (fused[:, :, :-2], attention.q_proj), (fused[:, :, -2], attention.k_proj)
        for expected, projection in (*parts, (fused[:, :, -1], attention.v_proj)):
            torch.testing.assert_close(projection(x), expected.flatten(1), rtol=1e-5, atol=1e-5)
    for number, layer in enumerate(model.model.vision_tower.encoder.layer):
        x = torch.randn(5, TOWER["hidden_size"], generator=generator)
        name = f"vision_model.encoder.layers.{number}.attn.qkv"
        fused = (x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).view(5, 3, TOWER["hidden_size"])
        for expected, letter in zip(fused.unbind(1), "qkv", strict=True):
            projection = getattr(layer.attention, f"{letter}_proj")
            torch.testing.assert_close(projection(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 3])
def test_any_number_of_files(tmp_path, shards):
    loaded, native = load(write_original(tmp_path, shards=shards)), random_native("internlm2", "300m")
    assert all(torch.equal(weight, native.state_dict()[name]) for name, weight in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(written, kind, dtype):
    model = load(written[kind], dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    for _, tensor in named_module_tensors(model, recurse=True):
        assert tensor.device.type == "cpu"
    # Rounding these to bfloat16 would turn far positions by whole turns.
    frequencies = 1 / ROPE_THETA ** (torch.arange(0, HEAD, 2) / HEAD)
    rotary = model.model.language_model.rotary_emb
    for buffer in (rotary.inv_freq, rotary.original_inv_freq):
        assert buffer.dtype == torch.float32
        torch.testing.assert_close(buffer, frequencies, rtol=1e-6, atol=0)
    if dtype == torch.bfloat16:
        expected = logits(random_native(*kind), 20)
        assert (logits(model, 20).float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations(folder, attention):
    model = load(folder, attn_implementation=attention)
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation == attention
    torch.testing.assert_close(logits(model, 20), logits(load(folder), 20), rtol=0, atol=1e-4)


def placed(*on_disk):
    """A device map, block by block: accelerate takes no entry for the rest."""
    blocks = ["multi_modal_projector", "vision_tower.embeddings", "language_model.embed_tokens", "language_model.norm"]
    blocks += [f"vision_tower.encoder.layer.{number}" for number in range(TOWER["num_hidden_layers"])]
    blocks += [f"language_model.layers.{number}" for number in range(TEXT["num_hidden_layers"])]
    names = [*(f"model.{block}" for block in blocks), "model.language_model.rotary_emb", "lm_head"]
    assert set(on_disk) <= set(names)
    return {name: "disk" if name in on_disk else "cpu" for name in names}


DEVICES: dict[str, dict[str, Any]] = {
    "none": {"device_map": None},
    "cpu": {"device_map": "cpu"},
    "auto": {"device_map": "auto"},
    "all": {"device_map": {"": "cpu"}},
    "some on disk": {
        "device_map": placed("model.language_model.layers.1", "model.vision_tower.encoder.layer.2", "lm_head")
    },
    "little room": {"device_map": "auto", "max_memory": {"cpu": 300_000}},
}


@pytest.mark.parametrize("case", DEVICES)
@pytest.mark.parametrize("kind", [("internlm2", "300m"), ("qwen2", "6b")])
def test_devices(written, kind, case, tmp_path):
    model = load(written[kind], **DEVICES[case], offload_folder=str(tmp_path))
    elsewhere = {name for name, weight in model.named_parameters() if weight.device.type == "meta"}
    assert bool(elsewhere) == (case in ("some on disk", "little room"))
    for length in (LIMIT + 20, 20):
        torch.testing.assert_close(logits(model, length), logits(random_native(*kind), length), rtol=0, atol=1e-5)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("llm", ["internlm2", "qwen2"])
def test_a_prompt_is_read_as_in_a_fresh_model(written, tmp_path, llm, original):
    """Whatever prompts went before: dynamic NTK depends on the length of this one alone."""
    folder = written[llm, "300m"]
    if not original:
        random_native(llm, "300m").save_pretrained(tmp_path)
        folder = tmp_path
    lengths = (30, LIMIT, LIMIT + 1, 3 * LIMIT, LIMIT + 1, LIMIT, 2 * LIMIT, 30, 3 * LIMIT, 30)
    fresh = {length: logits(random_native(llm, "300m"), length) for length in set(lengths)}
    model = load(folder)
    for length in lengths:
        torch.testing.assert_close(logits(model, length), fresh[length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [LIMIT // 2, LIMIT, 2 * LIMIT])
def test_rotary_frequencies(folder, length):
    """InternLM2's rule: beyond the limit the base grows with the prompt."""
    rotary = load(folder).model.language_model.rotary_emb
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    stretch = ROPE_FACTOR * max(length, LIMIT) / LIMIT - (ROPE_FACTOR - 1)
    base = ROPE_THETA * stretch ** (HEAD / (HEAD - 2))
    angles = torch.arange(length)[:, None] / base ** (torch.arange(0, HEAD, 2) / HEAD)
    for actual, expected in ((cos, angles.cos()), (sin, angles.sin())):
        torch.testing.assert_close(actual[0], torch.cat([expected, expected], -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scaling", [None, {"type": "default"}])
def test_no_rope_scaling(tmp_path, scaling):
    model = load(write_original(tmp_path, llm="qwen2", llm_config={"rope_scaling": scaling}))
    rotary = model.model.language_model.rotary_emb
    assert rotary.rope_type == "default"
    assert not rotary._forward_pre_hooks


@pytest.mark.parametrize("llm", ["internlm2", "qwen2"])
@pytest.mark.parametrize("says", [[5], None])
def test_answers_end_where_a_turn_ends(tmp_path, llm, says):
    """Whether the checkpoint's own settings say so or not, and where it has none at all."""
    folder, end = write_original(tmp_path, llm=llm), vocabulary(llm)[1]["<|im_end|>"]
    (folder / "generation_config.json").unlink(missing_ok=True)
    if says:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": says}))
    default = {"internlm2": [2], "qwen2": []}[llm]
    assert load(folder).generation_config.eos_token_id == [end, *(says or default)]


def drop(part):
    def edit(weights):
        for name in [name for name in weights if part in name]:
            del weights[name]

    return edit


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("llm", ["internlm2", "qwen2"])
def test_tied_embeddings(tmp_path, llm, in_file):
    """As the original does: an output layer in the file is not looked at, be it another one."""
    output = "language_model.lm_head" if llm == "qwen2" else "language_model.output"

    def edit(weights):
        weights[f"{output}.weight"] += 1
        if not in_file:
            del weights[f"{output}.weight"]

    model = load(write_original(tmp_path, llm=llm, tied=True, edit=edit))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    torch.testing.assert_close(logits(model, 20), logits(random_native(llm, "300m", tied=True), 20))


def replace(name, change):
    def edit(weights):
        weights[name] = change(weights[name])

    return edit


LAYER, BLOCK = "language_model.model.layers.1", "vision_model.encoder.layers.1"
SPOILT = {
    "a missing weight": (drop("language_model.model.norm.weight"), "1 weight.s. missing.* model.language_model.norm"),
    "no output layer": (drop("language_model.output"), "1 weight.s. missing, among them lm_head.weight"),
    "a missing fused matrix": (
        drop(f"{LAYER}.attention.wqkv"),
        "3 weight.s. missing.*layers.1.self_attn.k_proj.weight",
    ),
    "a missing block": (drop(BLOCK), "18 weight.s. missing.*encoder.layer.1.attention.k_proj.bias"),
    "an unknown weight": (
        lambda weights: weights.update({"vision_model.head.weight": torch.zeros(2)}),
        "1 weight.s. unknown, among them vision_model.head.weight",
    ),
    "a LoRA": (
        lambda weights: weights.update({f"{LAYER}.attention.wqkv.lora_A.weight": torch.zeros(160, 2)}),
        "3 weight.s. unknown, among them .*lora_A",
    ),
    "a wide embedding": (
        replace("language_model.model.tok_embeddings.weight", lambda weight: weight.repeat(1, 2)),
        "1 weight.s. of another shape, among them model.language_model.embed_tokens.weight",
    ),
    "a short fused matrix": (
        replace(f"{LAYER}.attention.wqkv.weight", lambda weight: weight[:-1]),
        f"1 weight.s. of another shape, among them {LAYER}.attention.wqkv.weight",
    ),
    "a fused matrix of a wider model": (
        replace(f"{LAYER}.attention.wqkv.weight", lambda weight: weight.repeat(1, 2)),
        "3 weight.s. of another shape, among them .*layers.1.self_attn.k_proj.weight",
    ),
    "a scalar fused matrix": (
        replace(f"{LAYER}.attention.wqkv.weight", lambda weight: torch.tensor(1.0)),
        f"1 weight.s. of another shape, among them {LAYER}.attention.wqkv.weight",
    ),
    "four parts in InternViT's": (
        replace(f"{BLOCK}.attn.qkv.weight", lambda weight: torch.cat([weight, weight[:48]])),
        f"1 weight.s. of another shape, among them {BLOCK}.attn.qkv.weight",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_weights_that_do_not_fit_are_refused(tmp_path, case):
    edit, complaint = SPOILT[case]
    folder = write_original(tmp_path, edit=edit)
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: {complaint}[^\n]*$"):
        load(folder)


FILES = {
    "missing": (lambda path: path.unlink(), "1 of 2 weight files missing, among them model-00002-of-00002.safetensors"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "model-00002-of-00002.* cannot be read .*"),
    "empty": (lambda path: path.write_bytes(b""), "model-00002-of-00002.safetensors cannot be read .*"),
    "a page of HTML": (lambda path: path.write_text("<html>" * 99), "model-00002-of-00002.* cannot be read .*"),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_refused(tmp_path, case):
    spoil, complaint = FILES[case]
    folder = write_original(tmp_path)
    spoil(folder / "model-00002-of-00002.safetensors")
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: {complaint}$"):
        load(folder)


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"weight_map": 3, "metadata": {}}'])
def test_a_damaged_index_is_refused(tmp_path, content):
    folder = write_original(tmp_path)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: model.safetensors.index.json is not an index .*$"):
        load(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = write_original(tmp_path, shards=1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=rf"^pretrained={folder}: has neither model.safetensors nor .*index.json$"):
        load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_native_checkpoints_and_saved_originals(written, tmp_path, kind):
    native, original = random_native(*kind), load(written[kind])
    for source, template in ((native, None), (original, "internvl2_5")):
        folder = tmp_path / str(template)
        source.save_pretrained(folder, max_shard_size="200KB" if template else "5GB")
        config = read_config(str(folder))
        assert (config.model_type, config.original_template, config.flexselect) == ("internvl", template, None)
        loaded = load(folder, config=config)
        assert all(torch.equal(weight, native.state_dict()[name]) for name, weight in loaded.state_dict().items())
        assert loaded.generation_config.eos_token_id == source.generation_config.eos_token_id


def test_a_damaged_native_checkpoint_is_refused(tmp_path):
    random_native("qwen2", "300m").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OptionError, match=r"^pretrained=\S+: [^\n]+$"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(OptionError, match=r"^pretrained=\S+: [^\n]+$"):
        load(tmp_path)
