"""FlexSelect-Lite selectors as they run: their visual tokens, their prompts, their scores; against plain float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lmms_flexselect import FlexSelect, Qwen2_5_VL
from lmms_flexselect.errors import FlexSelectError, OptionError
from lmms_flexselect.families.internvl.family import InternVL
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, pixel_values
from lmms_flexselect.families.qwen2_5_vl.family import window_order
from lmms_flexselect.lite.checkpoint import load_selector
from tests.support import oracle
from tests.support.internvl_inputs import Part as InternVLPart
from tests.support.internvl_inputs import Token, batch, pixels_of, tokens_of
from tests.support.internvl_oracle import original_features
from tests.support.internvl_tokenizers import vocabulary
from tests.support.internvl_weights import TOWER, original_weights, random_native
from tests.support.random_models import (
    IMAGE,
    MERGE,
    TOKENS_PER_SECOND,
    VIDEO,
    Part,
    llava_inputs,
    llava_video,
    qwen2_5_vl,
    video_inputs,
)
from tests.support.selectors import (
    FAMILIES,
    LAYERS,
    MROPE,
    TOWERS,
    YARN,
    PlainSelector,
    lite_answer,
    write_selector_folder,
)

SEED = 7
SIDE = 70
# Of InternVL's selector: another vocabulary, other marks.
OWN_SPECIAL = {"<IMG_CONTEXT>": 240, "<img>": 241, "</img>": 242}
SPECIAL = vocabulary("internlm2")[1]


def selector_of(tower, seed=3, **words):
    with TemporaryDirectory() as folder:
        write_selector_folder(Path(folder), tower, seed=seed, **words)
        return load_selector(folder, tower, torch.float32)


# The same selectors, plainly; and families that have them


@cache
def llava_model(mode="bilinear", stride=2):
    return llava_video(SEED, pooling=mode, stride=stride)


@cache
def llava(mode="bilinear", stride=2):
    family = LlavaVideo(llava_model(mode, stride))
    words = {"mm_spatial_pool_mode": mode, "mm_spatial_pool_stride": stride}
    family.lite(selector_of(family.tower, **words))
    return family, PlainSelector(family.tower, **words)


@cache
def qwen(scaling="mrope"):
    family = Qwen2_5_VL(qwen2_5_vl(SEED))
    words: dict[str, Any] = {"rope_scaling": {"mrope": MROPE, "yarn": YARN}[scaling]}
    family.lite(selector_of(family.tower, **words))
    return family, PlainSelector(family.tower, **words)


@cache
def internvl_model():
    return random_native("internlm2", "300m", seed=SEED)


@cache
def internvl_selector():
    return selector_of(TOWERS["internvl_hf"], tokenizer={}, vocabulary_size=250)


def internvl(marks="compete", shift=False):
    own = OWN_SPECIAL["<IMG_CONTEXT>"], OWN_SPECIAL["<img>"], OWN_SPECIAL["</img>"]
    family = InternVL(
        internvl_model(), (SPECIAL["<img>"], SPECIAL["</img>"]), marks, selector_mark_ids=own, shift_window=shift
    )
    family.lite(internvl_selector())
    return family, PlainSelector(TOWERS["internvl_hf"], 250)


def internvl_prompts(family, rows, seed=SEED):
    """Each row is the parts of a prompt as the model has it, and as the selector has it; one batch of them.

    Behind them is whether frames are numbered, in both or in each.
    """
    rows = [(*row[:2], *(row[2] if isinstance(row[2], tuple) else row[2:] * 2)) for row in rows]
    tokens = [tokens_of(mine, SPECIAL, numbered, seed) for mine, _, numbered, _ in rows]
    own = [tokens_of(theirs, OWN_SPECIAL, numbered, seed + 1) for _, theirs, _, numbered in rows]
    inputs = batch(tokens, [seed] * len(rows))
    inputs |= {
        "selector_ids": torch.tensor([[token.id for token in row] for row in own]),
        "selector_video": torch.tensor([[token.video for token in row] for row in own]),
        "selector_frame": torch.tensor([[token.frame for token in row] for row in own]),
    }
    return family.prompts(inputs), tokens, own


def llava_embeds(family, plain, inputs):
    """A prompt as the selector has it, ``(tokens, hidden)`` float64; `inputs` is `llava_inputs` of it alone."""
    config = family.model.config
    tower = copy.deepcopy(family.model.model.vision_tower["vision_tower"]["vision_model"]).double()
    videos, pieces = iter(inputs["videos"]), []
    for token in inputs["input_ids"][0].tolist():
        if token == VIDEO_TOKEN:
            with torch.no_grad():
                features = tower(pixel_values(next(videos), SIDE).double())
            pooling = config.mm_spatial_pool_mode, config.mm_spatial_pool_stride
            pieces.append(plain.llava_tokens(features, *pooling).flatten(0, 1))
        else:
            pieces.append(plain.table[token][None])
    return torch.cat(pieces)


class PlainMerger(nn.Module):
    """In the place of a model's own merger, so that the library itself puts the selector's tokens in order."""

    def __init__(self, plain):
        super().__init__()
        self.plain = plain

    def forward(self, patches: Tensor) -> Tensor:
        return self.plain.merged(patches, MERGE)


def qwen_embeds(family, plain, inputs):
    """As `llava_embeds`, of the first row of `video_inputs`."""
    model = copy.deepcopy(family.model).double()
    model.model.visual.merger = PlainMerger(plain)
    ids = inputs["input_ids"][0]
    embeds = plain.table[ids]
    for token, encode, pixels, grids in (
        (VIDEO, model.model.get_video_features, "pixel_values_videos", "video_grid_thw"),
        (IMAGE, model.model.get_image_features, "pixel_values", "image_grid_thw"),
    ):
        if pixels in inputs:
            with torch.no_grad():
                tokens = torch.cat(list(encode(inputs[pixels].double(), inputs[grids]).pooler_output))
            embeds[ids == token] = tokens[: int((ids == token).sum())]
    return embeds


def internvl_embeds(plain, own, pixels):
    """As `llava_embeds`, of the selector's tokens."""
    weights = {**original_weights(internvl_model()), **plain.weights}
    features = original_features(weights, pixels, "300m", TOWER["num_hidden_layers"])
    embeds = plain.table[[token.id for token in own]]
    embeds[[token.kind == "context" for token in own]] = features.flatten(0, 1)
    return embeds


def assert_as_the_oracle_says(family, prompt, plain, embeds, budget, at_most, reduction, remainder, **rules):
    """Scores, frame sets and what is kept."""
    scorer = prompt.scorer
    torch.testing.assert_close(scorer.inputs_embeds.double(), embeds, rtol=0, atol=2e-5)
    label = None if scorer.label is None else scorer.label.tolist()
    wanted = lite_answer(
        plain,
        embeds,
        scorer.video.tolist(),
        scorer.frame.tolist(),
        budget,
        at_most,
        reduction,
        remainder,
        label,
        whole_frames=family.round_budget,
        **rules,
    )
    assert wanted.score_margin > 1e-4, "rounding decides this case: choose another seed"
    select = FlexSelect(
        family.lite(family.selector, reduction), budget, at_most, remainder, round_budget=family.round_budget
    )
    selection = select(prompt)
    scores = torch.tensor(wanted.scores, dtype=torch.float64)
    torch.testing.assert_close(selection.scores.double(), scores, rtol=1e-5, atol=0, equal_nan=True)
    assert selection.frame_set.tolist() == wanted.frame_set
    assert selection.visual_kept.nonzero().flatten().tolist() == wanted.kept
    # The language model gets its own embeddings of what is kept.
    assert torch.equal(selection.prompt.inputs_embeds, prompt.inputs_embeds[selection.keep])
    return selection


# Visual tokens


@pytest.mark.parametrize(
    ("mode", "stride", "rows"), [("bilinear", 2, 3), ("bilinear", 3, 2), ("average", 2, 2), ("average", 1, 5)]
)
def test_llavas_features_are_projected_pooled_and_given_newlines(mode, stride, rows):
    family, plain = llava(mode, stride)
    features = torch.randn(4, 25, 32, generator=torch.Generator().manual_seed(SEED))
    tokens = family.selector.project(features)
    assert tokens.shape[1] == rows * (rows + 1)
    torch.testing.assert_close(tokens.double(), plain.llava_tokens(features.double(), mode, stride), rtol=0, atol=1e-5)
    newline = plain.weights["image_newline"].float()
    assert bool((tokens.unflatten(1, (rows, rows + 1))[:, :, -1] == newline).all())


def test_qwens_features_are_merged_by_four():
    family, plain = qwen()
    patches = 3 * torch.randn(24, 32, generator=torch.Generator().manual_seed(SEED))
    tokens = family.selector.project(patches)
    torch.testing.assert_close(tokens.double(), plain.merged(patches.double(), MERGE), rtol=0, atol=1e-5)


def test_internvls_features_go_through_a_perceptron():
    family, plain = internvl()
    pixels = pixels_of([Token(0, "context")] * 12)
    wanted = internvl_embeds(plain, [Token(1, "context")] * 12, pixels)
    _, tokens = family._encode(pixels)
    assert tokens is not None
    torch.testing.assert_close(tokens.double(), wanted, rtol=0, atol=1e-5)


GRIDS: list[list[list[int]]] = [
    [[1, 4, 4]],
    [[1, 8, 8]],
    [[1, 16, 24]],
    [[3, 10, 14]],
    [[1, 2, 2], [2, 18, 6]],
    [[2, 6, 22], [1, 8, 16], [4, 4, 10]],
    [[1, 8, 10], [1, 10, 8]],
]


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@pytest.mark.parametrize("window", [4, 8])
def test_the_order_of_windows_is_the_librarys(grids, window):
    """Also where a side is no multiple of a window, which leaves smaller ones at its end."""
    given = torch.tensor(grids)
    try:
        from transformers.vision_utils import get_vision_window_index
    except ImportError:  # up to transformers 5.2 a method of the tower
        config = qwen2_5_vl().config.vision_config
        config.window_size = window * config.patch_size
        tower = transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config)
        wanted, _ = tower.get_window_index(given)
    else:
        wanted, _ = get_vision_window_index(given, MERGE, window * 14, 14)
    order = window_order(grids, MERGE, window)
    assert order.tolist() == wanted.tolist()
    assert sorted(order.tolist()) == list(range(sum(t * h * w for t, h, w in grids) // MERGE**2))


@pytest.mark.parametrize(
    "row",
    [
        [3, ("video", (2, 4, 4)), 2],
        [3, ("video", (3, 5, 7)), 2],
        [1, ("video", (2, 3, 9)), 4, ("video", (1, 6, 2)), 3],
        [1, ("image", (1, 5, 6)), ("video", (2, 5, 3)), 4, ("image", (1, 2, 7)), 3],
        [2, ("image", (1, 5, 6)), 2],
    ],
    ids=str,
)
def test_qwens_visual_tokens_are_in_rows_and_not_in_windows(row):
    """A window is four by four tokens here."""
    family, plain = qwen()
    inputs = video_inputs([row])
    (prompt,) = family.prompts(inputs)
    torch.testing.assert_close(
        prompt.scorer.inputs_embeds.double(), qwen_embeds(family, plain, inputs), rtol=0, atol=2e-5
    )


# The prompt that a selector reads


def video(frames):
    return ("video", (frames, SIDE, SIDE))


LLAVA_ROWS: list[list[Part]] = [[4, video(3), 6], [1, video(2), 3, video(5), 9], [12]]
QWEN_ROWS: list[list[Part]] = [
    [4, ("video", (3, 2, 3)), 6],
    [2, ("image", (1, 2, 2)), 1, ("video", (2, 2, 2)), 2, ("video", (3, 3, 1)), 5],
    [2, ("image", (1, 3, 2)), 4],
    [12],
]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_llavas_scorer_reads_the_same_prompt_with_embeddings_of_its_own(padding_side):
    family, plain = llava()
    prompts = family.prompts(llava_inputs(LLAVA_ROWS, padding_side))
    for prompt, row in zip(prompts, LLAVA_ROWS, strict=True):
        assert_same_prompt(prompt)
        wanted = llava_embeds(family, plain, llava_inputs([row]))
        torch.testing.assert_close(prompt.scorer.inputs_embeds.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_qwens_scorer_reads_the_same_prompt_with_embeddings_of_its_own(padding_side):
    family, plain = qwen()
    prompts = family.prompts(video_inputs(QWEN_ROWS, None, padding_side))
    for prompt, row in zip(prompts, QWEN_ROWS, strict=True):
        assert_same_prompt(prompt)
        wanted = qwen_embeds(family, plain, video_inputs([row]))
        torch.testing.assert_close(prompt.scorer.inputs_embeds.double(), wanted, rtol=0, atol=2e-5)


def assert_same_prompt(prompt):
    """All but the embeddings, and text looked up in the selector's own table."""
    scorer = prompt.scorer
    for name in ("input_ids", "position_ids", "video", "frame"):
        assert torch.equal(getattr(scorer, name), getattr(prompt, name)), name
    assert scorer.grids == prompt.grids
    assert scorer.inputs_embeds.shape == (len(prompt), 40)
    assert prompt.inputs_embeds.shape[1] == 64
    assert scorer.scorer is None


@pytest.mark.parametrize("marks", ["compete", "stay"])
@pytest.mark.parametrize("numbered", [True, False])
def test_internvls_scorer_has_text_of_its_own_and_the_same_visual_tokens(marks, numbered):
    """Rows are as long as each other by the selector's tokenizer; by the model's they need not be."""
    family, plain = internvl(marks)
    mine: list[InternVLPart] = [4, ("image", 2), 2, ("video", 3), 1, ("video", 2), 6]
    theirs: list[InternVLPart] = [7, ("image", 2), 1, ("video", 3), 3, ("video", 2), 9]
    prompts, tokens, own = internvl_prompts(family, [(mine, theirs, numbered), ([9, *mine], theirs, numbered)])
    for prompt, model_tokens, own_tokens in zip(prompts, tokens, own, strict=True):
        scorer = prompt.scorer
        assert prompt.input_ids.tolist() == [token.id for token in model_tokens]
        assert scorer.input_ids.tolist() == [token.id for token in own_tokens]
        for name in ("video", "frame"):
            assert torch.equal(getattr(scorer, name)[scorer.visual], getattr(prompt, name)[prompt.visual])
        assert scorer.grids == prompt.grids == [(3, 2, 2), (2, 2, 2)]
        kinds = {"compete": ("context", "mark"), "stay": ("context",)}[marks]
        assert scorer.video.tolist() == [token.video if token.kind in kinds else -1 for token in own_tokens]
        assert scorer.label.tolist() == [-1 if token.kind in kinds else token.video for token in own_tokens]
        assert scorer.position_ids.tolist() == [list(range(len(own_tokens)))]
        wanted = internvl_embeds(plain, own_tokens, pixels_of(own_tokens, SEED))
        torch.testing.assert_close(scorer.inputs_embeds.double(), wanted, rtol=0, atol=2e-5)


def test_text_is_looked_up_in_the_selectors_own_table():
    inputs = llava_inputs([[9, video(1), 3]])
    text = inputs["input_ids"][0] != VIDEO_TOKEN
    (prompt,) = llava()[0].prompts(inputs)
    assert torch.equal(
        prompt.scorer.inputs_embeds[~prompt.visual],
        llava()[0].selector.embed_tokens.weight[inputs["input_ids"][0, text]],
    )
    (prompt,) = qwen()[0].prompts(video_inputs([[9, ("video", (2, 2, 2)), 3]]))
    assert torch.equal(
        prompt.scorer.inputs_embeds[~prompt.visual],
        qwen()[0].selector.embed_tokens.weight[prompt.input_ids[~prompt.visual]],
    )
    (prompt,), _, own = internvl_prompts(internvl()[0], [([2, ("video", 1), 3], [3, ("video", 1), 4], True)])
    ids = torch.tensor([token.id for token in own[0]])
    text = torch.tensor([token.kind != "context" for token in own[0]])
    table = internvl_selector().language_model["model"].embed_tokens.weight
    assert torch.equal(prompt.scorer.inputs_embeds[text], table[ids[text]])


def test_without_a_selector_nothing_is_made_for_one():
    family = LlavaVideo(llava_model())
    (prompt,) = family.prompts(llava_inputs([[2, video(2), 3]]))
    assert prompt.scorer is None
    lite = llava()[0].lite(llava()[0].selector)
    with pytest.raises(FlexSelectError, match=r"^this prompt was made without a selector"):
        FlexSelect(lite, 4)(prompt)
    bare = InternVL(internvl_model(), (SPECIAL["<img>"], SPECIAL["</img>"]))
    tokens = tokens_of([2, ("video", 2), 3], SPECIAL, True)
    assert bare.prompts(batch([tokens], [SEED]))[0].scorer is None
    assert Qwen2_5_VL(qwen()[0].model).prompts(video_inputs([[2, ("video", (1, 2, 2)), 1]]))[0].scorer is None


def test_a_shortened_prompt_has_no_scorer():
    family, _ = llava()
    (prompt,) = family.prompts(llava_inputs([[2, video(3), 3]]))
    short = FlexSelect(family.lite(family.selector), 5, round_budget=False)(prompt).prompt
    assert short.scorer is None
    assert len(short) == 2 + 5 + 3


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 100])
def test_the_tower_runs_once_a_chunk_and_chunks_change_nothing(frames_per_chunk):
    whole, _ = llava()
    family = LlavaVideo(whole.model, frames_per_chunk)
    family.lite(whole.selector)
    runs: list[int] = []
    tower = family.model.model.vision_tower["vision_tower"]["vision_model"]
    hook = tower.register_forward_pre_hook(lambda _, given: runs.append(len(given[0])))
    inputs = llava_inputs([[2, video(5), 3]])
    (prompt,) = family.prompts(inputs)
    assert runs == {1: [1] * 5, 2: [2, 2, 1], 100: [5]}[frames_per_chunk]
    hook.remove()
    (wanted,) = whole.prompts(inputs)
    torch.testing.assert_close(prompt.scorer.inputs_embeds, wanted.scorer.inputs_embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tiles_per_chunk", [1, 2, 100])
def test_internvls_tower_runs_once_a_chunk(tiles_per_chunk):
    whole, _ = internvl()
    family = copy.copy(whole)
    family.tiles_per_chunk = tiles_per_chunk
    runs: list[int] = []
    hook = family.model.model.vision_tower.register_forward_pre_hook(
        lambda _, given, named: runs.append(len(named.get("pixel_values", given[0] if given else ()))), with_kwargs=True
    )
    rows: list[Any] = [([2, ("video", 5), 3], [1, ("video", 5), 2], True)]
    (prompt,), _, _ = internvl_prompts(family, rows)
    assert runs == {1: [1] * 5, 2: [2, 2, 1], 100: [5]}[tiles_per_chunk]
    hook.remove()
    (wanted,), _, _ = internvl_prompts(whole, rows)
    torch.testing.assert_close(prompt.scorer.inputs_embeds, wanted.scorer.inputs_embeds, rtol=0, atol=1e-5)


def test_qwens_tower_runs_once():
    family, _ = qwen()
    runs: list[int] = []
    hook = family.model.model.visual.register_forward_pre_hook(lambda *_: runs.append(1))
    family.prompts(video_inputs(QWEN_ROWS))
    hook.remove()
    assert len(runs) == 2  # of all videos, and of all images


# Scores


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(
    ("row", "budget", "at_most", "remainder"),
    [
        ([4, video(5), 6], 20, 64, "spread"),
        ([4, video(7), 6], 31, 3, "spread"),
        ([4, video(7), 6], 31, 3, "drop"),
        ([2, video(4), 9], 3, 2, "spread"),
        ([3, video(3), 2, video(5), 7], 23, 2, "spread"),
    ],
    ids=str,
)
def test_llavas_scores_are_the_oracles(row, budget, at_most, remainder, reduction):
    family, plain = llava()
    inputs = llava_inputs([row], seed=SEED)
    (prompt,) = family.prompts(inputs)
    embeds = llava_embeds(family, plain, inputs)
    assert_as_the_oracle_says(family, prompt, plain, embeds, budget, at_most, reduction, remainder)


def test_llavas_scores_with_average_pooling():
    family, plain = llava("average", 2)
    inputs = llava_inputs([[4, video(6), 6]], seed=SEED)
    (prompt,) = family.prompts(inputs)
    selection = assert_as_the_oracle_says(
        family, prompt, plain, llava_embeds(family, plain, inputs), 13, 4, "max", "spread"
    )
    assert selection.visual_tokens == 6 * 2 * 3


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("marks", ["compete", "stay"])
@pytest.mark.parametrize(
    ("mine", "theirs", "budget", "at_most", "remainder"),
    [
        ([4, ("video", 5), 6], [6, ("video", 5), 3], 12, 64, "spread"),
        ([4, ("video", 7), 6], [1, ("video", 7), 8], 17, 3, "spread"),
        ([4, ("video", 7), 6], [1, ("video", 7), 8], 17, 3, "drop"),
        ([3, ("video", 3), 2, ("video", 6), 7], [5, ("video", 3), 1, ("video", 6), 4], 25, 3, "spread"),
        ([2, ("image", 1), ("video", 5), 4], [3, ("image", 1), ("video", 5), 5], 12, 2, "spread"),
    ],
    ids=str,
)
@pytest.mark.parametrize("numbered", [True, False])
def test_internvls_scores_are_the_oracles(mine, theirs, budget, at_most, remainder, numbered, marks, reduction):
    family, plain = internvl(marks)
    (prompt,), _, (own,) = internvl_prompts(family, [(mine, theirs, numbered)])
    embeds = internvl_embeds(plain, own, pixels_of(own, SEED))
    assert_as_the_oracle_says(family, prompt, plain, embeds, budget, at_most, reduction, remainder)


def qwen_positions(row) -> Callable[[list[int]], list[oracle.Position]]:
    """Of a prompt of some columns alone, which hold whole units; a unit is a second long, as for the model itself."""
    parts = oracle._with_markers(row)
    ends = torch.tensor([part if isinstance(part, int) else math.prod(part[1]) for part in parts]).cumsum(0).tolist()

    def positions(present):
        left: list[Part] = []
        for part, end, start in zip(parts, ends, [0, *ends], strict=False):
            own = sum(start <= column < end for column in present)
            if isinstance(part, int):
                left.append(own)
            elif own:
                _, height, width = part[1]
                left.append((part[0], (own // (height * width), height, width)))
        return oracle.mrope(left, [TOKENS_PER_SECOND * 1.0] * len(left))

    return positions


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("scaling", ["mrope", "yarn"])
@pytest.mark.parametrize(
    ("row", "budget", "at_most"),
    [
        ([4, ("video", (5, 2, 3)), 6], 11, 64),
        ([4, ("video", (7, 3, 5)), 6], 40, 3),
        ([3, ("image", (1, 2, 2)), 2, ("video", (3, 3, 2)), 2, ("video", (7, 2, 2)), 9], 22, 2),
    ],
    ids=str,
)
def test_qwens_scores_are_the_oracles(row, budget, at_most, scaling, reduction):
    """Frames are 2.5 seconds apart in the model's prompt, and one in the selector's sets."""
    family, plain = qwen(scaling)
    inputs = video_inputs(
        [row], [2.5] * sum(part[0] == "video" for part in row if not isinstance(part, int)), seed=SEED
    )
    (prompt,) = family.prompts(inputs)
    embeds = qwen_embeds(family, plain, inputs)
    rules = {"positions": qwen_positions(row)}
    assert_as_the_oracle_says(family, prompt, plain, embeds, budget, at_most, reduction, "spread", **rules)


# What of the last layer counts


def relevance_of(family, selector, prompt_of):
    lite = family.lite(selector)
    (prompt,) = prompt_of(family)
    return FlexSelect(lite, 7, 3, round_budget=False)(prompt).scores


CASES: dict[str, Any] = {
    "llava_vid": (lambda: llava()[0], lambda family: family.prompts(llava_inputs([[4, video(5), 6]]))),
    "qwen2_5_vl": (
        lambda: qwen()[0],
        lambda family: family.prompts(video_inputs([[4, ("video", (5, 2, 3)), 6]])),
    ),
    "internvl_hf": (
        lambda: internvl()[0],
        lambda family: internvl_prompts(family, [([4, ("video", 5), 6], [3, ("video", 5), 4], True)])[0],
    ),
}


@pytest.mark.parametrize("family_name", FAMILIES)
def test_queries_and_keys_are_the_last_things_that_count(family_name):
    of_family, prompt_of = CASES[family_name]
    family = of_family()
    own = family.selector
    unused = ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    unused = [f"layers.{LAYERS - 1}.{part}.weight" for part in (*unused, "post_attention_layernorm")] + ["norm.weight"]
    used = [f"layers.{LAYERS - 1}.{part}" for part in ("self_attn.k_proj.weight", "self_attn.q_proj.bias")]
    used += [f"layers.{LAYERS - 1}.input_layernorm.weight", f"layers.{LAYERS - 2}.self_attn.v_proj.weight"]
    used += [f"layers.{LAYERS - 2}.mlp.down_proj.weight"]
    try:
        wanted = relevance_of(family, own, prompt_of)
        for names, changes in ((unused, False), (used, True)):
            for group in [names] if not changes else [[name] for name in names]:
                other = copy.deepcopy(own)
                weights = dict(other.decoder.named_parameters())
                for name in group:
                    with torch.no_grad():
                        weights[name].copy_(weights[name].flip(0) + 0.5)
                got = relevance_of(family, other, prompt_of)
                assert torch.equal(got, wanted) != changes, group
                # Not by a hair either: these are weights, and not rounding.
                assert not changes or float((got / wanted - 1).abs().max()) > 1e-2, group
    finally:
        family.selector = own


# InternVL's published selector: its window is shifted

SHIFTS = {"forward": (9, 5, 8, 12), "back": (4, 7, 9, 8), "none": (5, 5, 6, 6)}


def shifted(before, own_before, behind, own_behind, frames=4):
    """The prompt by the shifted and by the plain family, and its tokens."""
    row: list[Any] = [([before, ("video", frames), behind], [own_before, ("video", frames), own_behind], False)]
    family, plain = internvl(shift=True)
    (prompt,), (tokens,), (own,) = internvl_prompts(family, row)
    (unshifted,), _, _ = internvl_prompts(internvl()[0], row)
    return family, plain, prompt, unshifted, tokens, own


@pytest.mark.parametrize("way", SHIFTS)
@pytest.mark.parametrize(("budget", "at_most"), [(7, 64), (11, 2)])
def test_the_published_selectors_window(way, budget, at_most):
    """Its i-th score decides on the model's token where the selector's i-th visual token stands."""
    before, own_before, behind, own_behind = SHIFTS[way]
    family, plain, prompt, unshifted, tokens, own = shifted(before, own_before, behind, own_behind)
    visual = 4 * 6
    assert [column for column, token in enumerate(own) if token.video >= 0] == list(
        range(own_before, own_before + visual)
    )
    assert prompt.visual.nonzero().flatten().tolist() == list(range(own_before, own_before + visual))
    assert prompt.frame[prompt.visual].tolist() == [frame for frame in range(4) for _ in range(6)]
    assert bool((prompt.frame[~prompt.visual] == -1).all())
    assert prompt.num_videos == 1
    assert torch.equal(prompt.input_ids, unshifted.input_ids)
    assert torch.equal(prompt.inputs_embeds, unshifted.inputs_embeds)

    # The scores are those of the selector's own prompt, which is not shifted.
    embeds = internvl_embeds(plain, own, pixels_of(own, SEED))
    wanted = lite_answer(plain, embeds, [token.video for token in own], [token.frame for token in own], budget, at_most)
    assert wanted.score_margin > 1e-4, "rounding decides this case: choose another seed"
    selection = FlexSelect(family.lite(family.selector), budget, at_most, round_budget=False)(prompt)
    scores = torch.tensor(wanted.scores, dtype=torch.float64)
    torch.testing.assert_close(selection.scores.double(), scores, rtol=1e-5, atol=0)
    assert selection.kept_tokens == budget
    kept = {own_before + place for place in wanted.kept}
    window = range(own_before, own_before + visual)
    stay = [column for column in range(len(tokens)) if column not in window or column in kept]
    assert selection.keep.nonzero().flatten().tolist() == stay
    assert selection.prompt.input_ids.tolist() == [tokens[column].id for column in stay]
    assert selection.prompt.position_ids.tolist() == [list(range(len(stay)))]
    assert torch.equal(selection.prompt.inputs_embeds, unshifted.inputs_embeds[stay])
    if way == "none":
        same = FlexSelect(family.lite(family.selector), budget, at_most, round_budget=False)(unshifted)
        assert torch.equal(same.keep, selection.keep)


def test_which_tokens_may_be_dropped_in_a_shifted_window():
    """Forward: the last of the text before the video, and its last tokens stay; back: the reverse."""
    for way, may_go, must_stay in (("forward", "before", 4), ("back", "behind", 3)):
        before, own_before, behind, own_behind = SHIFTS[way]
        _, _, prompt, _, tokens, _ = shifted(before, own_before, behind, own_behind)
        free = [column for column in range(len(tokens)) if prompt.visual[column]]
        text = [column for column in free if tokens[column].kind == "text"]
        fixed = [column for column in range(len(tokens)) if tokens[column].video >= 0 and column not in free]
        video_at = range(before, before + 24)
        if may_go == "before":
            assert text == list(range(before - must_stay, before))
            assert fixed == list(video_at)[-must_stay:]
        else:
            assert text == list(range(before + 24, before + 24 + must_stay))
            assert fixed == list(video_at)[:must_stay]


def test_a_budget_for_the_whole_window_changes_nothing():
    family, _, prompt, unshifted, _, _ = shifted(*SHIFTS["forward"])
    selection = FlexSelect(family.lite(family.selector), 24, round_budget=False)(prompt)
    assert selection.prompt is prompt
    assert torch.equal(prompt.inputs_embeds, unshifted.inputs_embeds)


def test_prompts_without_a_video_are_not_shifted():
    family, _ = internvl(shift=True)
    (prompt,), _, (own,) = internvl_prompts(family, [([3, ("image", 2), 4], [5, ("image", 2), 2], False)])
    assert not bool(prompt.visual.any())
    assert len(prompt.scorer) == len(own)


def test_an_image_before_the_video_shifts_with_it():
    family, _ = internvl(shift=True)
    row: list[Any] = [([6, ("image", 1), ("video", 3), 4], [4, ("image", 1), ("video", 3), 5], False)]
    (prompt,), _, _ = internvl_prompts(family, row)
    assert prompt.visual.nonzero().flatten().tolist() == list(range(4 + 6, 4 + 6 + 18))


@pytest.mark.parametrize(
    ("parts", "numbered"),
    [
        ([("video", 3)], True),
        ([("video", 3)], (True, False)),
        ([("video", 3)], (False, True)),
        ([("video", 2), ("video", 2)], False),
        ([("video", 2), 3, ("video", 2)], False),
    ],
    ids=["numbered", "numbered for the model", "numbered for the selector", "two videos", "two videos apart"],
)
def test_the_published_selector_knows_one_video_of_bare_frames(parts, numbered):
    family, _ = internvl(shift=True)
    says = "^the published InternVL selector was trained on one video of bare frames; give frame_labels=bare$"
    with pytest.raises(OptionError, match=says):
        internvl_prompts(family, [([4, *parts, 6], [3, *parts, 4], numbered)])


def test_one_numbered_frame_is_one_run_of_tokens():
    family, _ = internvl(shift=True)
    (prompt,), _, _ = internvl_prompts(family, [([4, ("video", 1), 6], [3, ("video", 1), 4], True)])
    assert prompt.visual.nonzero().flatten().tolist() == list(range(6, 12))


def test_a_window_beyond_the_prompt():
    family, _ = internvl(shift=True)
    with pytest.raises(FlexSelectError, match=r"^the prompt is too short for the published"):
        internvl_prompts(family, [([2, ("video", 2), 3], [6, ("video", 2), 3], False)])
    # To its very last token it may reach.
    (prompt,), _, _ = internvl_prompts(family, [([2, ("video", 2), 3], [5, ("video", 2), 3], False)])
    assert bool(prompt.visual[-1])
