"""FlexSelect on InternVL, and its answers; on random weights, against plain loops."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch

from lmms_flexselect import FlexSelect
from lmms_flexselect.families.internvl.checkpoint import load_model
from lmms_flexselect.families.internvl.family import InternVL
from tests.support.internvl_inputs import A_TILE, Part, batch, pixels_of, tokens_of
from tests.support.internvl_oracle import InternVLOracle, PlainDecoder, original_features
from tests.support.internvl_tokenizers import vocabulary
from tests.support.internvl_weights import TEXT, TOWER, original_weights, random_native

LAYER = 2
NEW_TOKENS = 4
SEED = 7
MODELS = [("internlm2", "300m"), ("qwen2", "6b")]
# Where dynamic NTK sets in: in the middle of these prompts, and, for answers that are cached as it grows, out of reach.
NEAR, FAR = TEXT["max_position_embeddings"], 4096

TWO_VIDEOS: list[Part] = [3, ("video", 3), 2, ("video", 6), 7]
IMAGES_TOO: list[Part] = [2, ("image", 1), ("video", 7), 1, ("image", 2), 5]


@cache
def loaded(llm, vit, seed, limit):
    native = random_native(llm, vit, seed=seed)
    native.config.text_config.max_position_embeddings = limit
    with TemporaryDirectory() as folder:
        native.save_pretrained(folder)
        return load_model(folder, torch.float32)


@cache
def plain(llm, vit, seed, limit):
    native = random_native(llm, vit, seed=seed)
    return PlainDecoder(native, limit), original_weights(native)


def family(kind, seed=SEED, limit=FAR, marks="compete"):
    special = vocabulary(kind[0])[1]
    return InternVL(loaded(*kind, seed, limit), (special["<img>"], special["</img>"]), marks)


def plain_embeds(tokens, kind, seed, limit=FAR):
    """Of a whole prompt: ``(tokens, hidden)`` float64."""
    decoder, weights = plain(*kind, seed, limit)
    features = original_features(weights, pixels_of(tokens, seed), kind[1], TOWER["num_hidden_layers"])
    embeds = decoder.table[[token.id for token in tokens]]
    embeds[[token.kind == "context" for token in tokens]] = features.flatten(0, 1)
    return embeds


def answers(family, prompts, **options):
    new = family.generate(
        prompts, **{"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    )
    return [answer.tolist() for answer in new]


def assert_as_the_oracle_says(
    row,
    budget,
    at_most,
    kind=MODELS[0],
    seed=SEED,
    limit=FAR,
    numbered=True,
    marks="compete",
    reduction="max",
    remainder="spread",
):
    tokens = tokens_of(row, vocabulary(kind[0])[1], numbered, seed)
    oracle = InternVLOracle(plain(*kind, seed, limit)[0], LAYER, reduction, marks, remainder)
    embeds = plain_embeds(tokens, kind, seed, limit)
    wanted = oracle(tokens, embeds, budget, at_most, NEW_TOKENS)
    assert min(wanted.score_margin, wanted.logit_margin) > 1e-4, "rounding decides this case: choose another seed"
    own = family(kind, seed, limit, marks)
    (prompt,) = own.prompts(batch([tokens], [seed]))
    select = FlexSelect(own.reference_layer(LAYER, reduction), budget, at_most, remainder, own.round_budget)
    selection = select(prompt)
    assert selection.frame_set.tolist() == wanted.frame_set
    scores = torch.tensor(wanted.scores, dtype=torch.float64)
    torch.testing.assert_close(selection.scores.double(), scores, rtol=1e-5, atol=0, equal_nan=True)
    assert selection.visual_kept.nonzero().flatten().tolist() == wanted.kept
    # All that is no visual token is still there, labels of frames that lost all of theirs too.
    visual = [c for c, token in enumerate(tokens) if oracle.visual(token)]
    dropped = set(visual) - {visual[i] for i in wanted.kept}
    stay = [token for c, token in enumerate(tokens) if c not in dropped]
    assert selection.prompt.input_ids.tolist() == [token.id for token in stay]
    assert selection.prompt.frame.tolist() == [token.frame for token in stay]
    assert selection.prompt.video.tolist() == [token.video if oracle.visual(token) else -1 for token in stay]
    assert selection.prompt.label is not None
    assert selection.prompt.label.tolist() == [-1 if oracle.visual(token) else token.video for token in stay]
    assert selection.prompt.position_ids.tolist() == [list(range(len(stay)))]
    torch.testing.assert_close(selection.prompt.inputs_embeds.double(), wanted.embeds, rtol=0, atol=1e-4)
    if limit == FAR or len(tokens) + NEW_TOKENS <= limit:
        assert answers(own, [selection.prompt]) == [wanted.tokens]
    return selection


@pytest.mark.parametrize("marks", ["compete", "stay"])
@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("budget", [5, 12, 17])
@pytest.mark.parametrize("frames", [1, 3, 4, 10])  # less than a set, one set exactly, one frame more, several
@pytest.mark.parametrize(("kind", "seed"), [(MODELS[0], SEED), (MODELS[1], 3)])
def test_one_video(kind, seed, frames, budget, numbered, marks):
    row: list[Part] = [4, ("video", frames), 6]
    selection = assert_as_the_oracle_says(row, budget, 3, kind, seed, numbered=numbered, marks=marks)
    assert selection.kept_tokens == min(budget, frames * (A_TILE + 2 * (marks == "compete")))


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_the_mean(kind, numbered):
    assert_as_the_oracle_says([4, ("video", 7), 6], 13, 3, kind, numbered=numbered, reduction="mean")


@pytest.mark.parametrize("text", [1, 2])
def test_the_first_query_is_the_first_token_behind_the_video(text):
    assert_as_the_oracle_says([3, ("video", 6), text], 12, 3, reduction="mean")


@pytest.mark.parametrize("marks", ["compete", "stay"])
@pytest.mark.parametrize(("frames", "budget"), [(5, 13), (12, 12)])
def test_sets_of_one_frame(frames, budget, marks):
    assert_as_the_oracle_says([2, ("video", frames), 3], budget, 1, marks=marks)


def test_the_remainder_may_be_dropped():
    selection = assert_as_the_oracle_says([4, ("video", 10), 6], 35, 3, remainder="drop")
    assert selection.kept_tokens == 32  # eight of each of four sets


@pytest.mark.parametrize("kind", MODELS)
def test_sets_are_read_by_frequencies_of_their_own(kind):
    """The whole prompt lies beyond dynamic NTK's limit, a set of it does not, and another does."""
    for row, at_most in (([4, ("video", 24), 6], 4), ([4, ("video", 24), 6], 20)):
        assert_as_the_oracle_says(row, 31, at_most, kind, limit=NEAR)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("row", [TWO_VIDEOS, [("video", 5), ("video", 5), 4], [1, ("video", 7), ("video", 2), 3]])
def test_several_videos(row, numbered):
    assert_as_the_oracle_says(row, 25, 3, numbered=numbered)


def test_several_videos_whose_marks_stay():
    assert_as_the_oracle_says(TWO_VIDEOS, 25, 3, marks="stay")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("marks", ["compete", "stay"])
def test_images_are_never_dropped(kind, marks):
    selection = assert_as_the_oracle_says(IMAGES_TOO, 9, 4, kind, marks=marks)
    assert selection.visual_tokens == 7 * (A_TILE + 2 * (marks == "compete"))


@pytest.mark.parametrize("budget", [30, 31, 8256])
def test_a_budget_no_smaller_than_the_video_changes_nothing(budget):
    tokens = tokens_of([4, ("video", 5), 6], vocabulary("qwen2")[1], True, SEED)
    own = family(MODELS[1])
    (prompt,) = own.prompts(batch([tokens], [SEED]))
    selection = FlexSelect(own.reference_layer(LAYER), budget, 2, round_budget=False)(prompt)
    assert selection.prompt is prompt
    assert selection.kept_tokens == selection.visual_tokens == 30
    assert bool(selection.scores.isnan().all())


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_is_answered_as_its_rows_are(kind):
    """Without a selector, and so without labels or marks left out; the shorter row is padded on the left."""
    rows: list[list[Part]] = [[4, ("video", 2), 6], [2, ("video", 5), 1, ("image", 2), 9]]
    own = family(kind)
    tokens = [tokens_of(row, vocabulary(kind[0])[1], True, SEED) for row in rows]
    prompts = [FlexSelect(None)(prompt).prompt for prompt in own.prompts(batch(tokens, [SEED, SEED]))]
    assert [len(prompt) for prompt in prompts] == [len(row) for row in tokens]
    embeds = [plain_embeds(row, kind, SEED) for row in tokens]
    expected = [plain(*kind, SEED, FAR)[0].greedy(row, NEW_TOKENS) for row in embeds]
    assert min(margin for _, margin in expected) > 1e-4, "rounding decides this case: choose another seed"
    assert expected[0][0] != expected[1][0]
    together = answers(own, prompts)
    assert together == [row for row, _ in expected]
    assert together == [answers(own, [prompt])[0] for prompt in prompts]


def test_an_answer_ends_where_the_model_ends_it():
    """Only new tokens come back, and what a shorter answer lacks is padding."""
    kind = MODELS[0]
    tokens = [tokens_of([4, ("video", n), 6], vocabulary(kind[0])[1], True, SEED) for n in (2, 4)]
    own = family(kind)
    prompts = own.prompts(batch(tokens, [SEED, SEED]))
    short, long = answers(own, prompts)
    end = short[2]
    assert end not in (*short[:2], *long)
    assert answers(own, prompts, eos_token_id=end) == [[*short[:3], 0], long]
