"""LLaVA-Video: from frames and token ids to prompts, selection and answers; on random weights, against plain loops."""

from __future__ import annotations

import math
import weakref
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lmms_flexselect import FlexSelect
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.families.llava_video.family import VIDEO_TOKEN, LlavaVideo, continuation_loss, pixel_values
from lmms_flexselect.families.pixels import resize_frames
from tests.support.oracle import Answer, deal, relevance, share, top_k
from tests.support.random_models import HEADS, KV_HEADS, LAYERS, ROPE_THETA, Part, llava_inputs, llava_video

SEED = 7  # with answers that do not fall into a loop at once, other ones for other prompts
SIDE, A_FRAME = 70, 3 * 4  # three rows of three tokens, and a newline each
LAYER = 2
NEW_TOKENS = 5

VIDEO_ROW: list[Part] = [4, ("video", (5, SIDE, SIDE)), 6]
LONG_ROW: list[Part] = [2, ("video", (11, SIDE, SIDE)), 9]
TWO_VIDEOS: list[Part] = [3, ("video", (3, 40, 90)), 2, ("video", (4, 100, 64)), 7]
TEXT_ROW: list[Part] = [12]


@cache
def family(seed=SEED):
    return LlavaVideo(llava_video(seed))


def video(frames):
    return ("video", (frames, SIDE, SIDE))


# What the tower reads


@pytest.mark.parametrize("size", [384, 70])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (720, 405), (384, 384), (383, 500), (5, 3)])
def test_frames_reach_the_tower_as_siglips_own_processor_hands_them_over(height, width, size):
    """PIL's bicubic, not torch's, which rounds otherwise: training used PIL."""
    processor = getattr(transformers, "SiglipImageProcessorPil", transformers.SiglipImageProcessor)(
        size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8))
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    squares = processor(images, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    assert np.array_equal(resize_frames(frames, size).permute(0, 3, 1, 2), squares)
    expected = torch.as_tensor(processor(images, return_tensors="np")["pixel_values"])
    pixels = pixel_values(frames, size)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected.float(), rtol=0, atol=2e-7)
    assert float(pixels.abs().max()) <= 1 + 1e-6


# Prompts


def layout(row, inputs, model, dtype):
    """A single prompt by hand: embeddings, and the columns of each video; `inputs` is `llava_inputs` of it alone."""
    table = model.get_input_embeddings().weight
    pieces: list[torch.Tensor] = []
    columns: list[list[int]] = []
    videos = iter(inputs["videos"])
    for token in inputs["input_ids"][0].tolist():
        if token == VIDEO_TOKEN:
            pixels = pixel_values(next(videos), SIDE).to(dtype)
            with torch.no_grad():
                tokens = model.model.encode_frames(pixels).flatten(0, 1)
            start = sum(len(piece) for piece in pieces)
            columns.append(list(range(start, start + len(tokens))))
            pieces.append(tokens)
        else:
            pieces.append(table[token][None].detach())
    return torch.cat(pieces), columns


@pytest.mark.parametrize("row", [VIDEO_ROW, TWO_VIDEOS, TEXT_ROW, [video(1), 1], [1, video(2), video(3), 2]])
def test_a_prompt_is_its_text_with_the_videos_where_their_marks_were(row):
    inputs = llava_inputs([row])
    (prompt,) = family().prompts(inputs)
    embeds, columns = layout(row, inputs, family().model, torch.float32)
    torch.testing.assert_close(prompt.inputs_embeds, embeds, rtol=0, atol=1e-5)
    visual = {column for of_video in columns for column in of_video}
    text = [column for column in range(len(embeds)) if column not in visual]
    assert torch.equal(prompt.inputs_embeds[text], embeds[text])  # looked up, so equal to the last bit

    ids = inputs["input_ids"][0]
    assert prompt.input_ids[text].tolist() == ids[ids != VIDEO_TOKEN].tolist()
    assert prompt.visual.nonzero().flatten().tolist() == sorted(visual)
    assert set(prompt.input_ids[prompt.visual].tolist()) <= {VIDEO_TOKEN}
    lengths = [part[1][0] for part in row if not isinstance(part, int)]
    assert prompt.grids == [(frames, 3, 4) for frames in lengths]
    for number, (of_video, frames) in enumerate(zip(columns, lengths, strict=True)):
        assert prompt.video[of_video].tolist() == [number] * len(of_video)
        assert prompt.frame[of_video].tolist() == [frame for frame in range(frames) for _ in range(A_FRAME)]
    assert set(prompt.frame[text].tolist()) == set(prompt.video[text].tolist()) == {-1}
    assert prompt.position_ids.tolist() == [list(range(len(prompt)))]


def test_a_set_is_scored_at_positions_of_its_own():
    (prompt,) = family().prompts(llava_inputs([VIDEO_ROW]))
    present = ~prompt.visual | (prompt.frame % 2 == 1)
    assert prompt.compact_positions(present).tolist() == [list(range(4 + 2 * A_FRAME + 6))]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_does_not_reach_the_prompts(padding_side):
    rows = [VIDEO_ROW, TEXT_ROW, TWO_VIDEOS, LONG_ROW]
    batch = family().prompts(llava_inputs(rows, padding_side))
    assert len({len(prompt) for prompt in batch}) == len(rows)
    for prompt, row in zip(batch, rows, strict=True):
        (alone,) = family().prompts(llava_inputs([row]))
        for name in ("input_ids", "inputs_embeds", "position_ids", "video", "frame"):
            assert torch.equal(getattr(prompt, name), getattr(alone, name)), name
        assert prompt.grids == alone.grids


def test_rows_need_no_mask_where_none_is_padded():
    inputs = llava_inputs([VIDEO_ROW, VIDEO_ROW])
    with_mask = family().prompts(inputs)
    del inputs["attention_mask"]
    for prompt, other in zip(family().prompts(inputs), with_mask, strict=True):
        assert torch.equal(prompt.inputs_embeds, other.inputs_embeds)


def test_a_long_video_is_not_cut():
    """The original cuts at tokenizer_model_max_length, 512 frames at 156, and with them the question."""
    model = family().model
    inputs = llava_inputs([[3, video(50), 5]])
    (prompt,) = family().prompts(inputs)
    assert len(prompt) == 3 + 50 * A_FRAME + 5 > model.config.tokenizer_model_max_length
    assert torch.equal(prompt.inputs_embeds[-5:], model.get_input_embeddings()(inputs["input_ids"][0, -5:]))


@pytest.mark.parametrize("videos", [0, 1, 3])
def test_marks_and_videos_must_match(videos):
    inputs = llava_inputs([TWO_VIDEOS])
    inputs["videos"] = (inputs["videos"] * 2)[:videos]
    with pytest.raises(FlexSelectError, match=rf"^the prompts have 2 place\(s\) for a video, and there are {videos} v"):
        family().prompts(inputs)


def test_a_prompt_that_promises_a_video_needs_one():
    inputs = llava_inputs([VIDEO_ROW])
    del inputs["videos"]
    with pytest.raises(FlexSelectError, match=r"1 place\(s\)"):
        family().prompts(inputs)


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 3, 100])
def test_chunks_change_nothing(frames_per_chunk):
    rows = [TWO_VIDEOS, LONG_ROW]
    chunked = LlavaVideo(family().model, frames_per_chunk).prompts(llava_inputs(rows))
    for prompt, whole in zip(chunked, family().prompts(llava_inputs(rows)), strict=True):
        torch.testing.assert_close(prompt.inputs_embeds, whole.inputs_embeds, rtol=0, atol=1e-5)
        assert torch.equal(prompt.frame, whole.frame)


def test_no_more_than_one_chunk_is_in_the_tower_at_a_time():
    model = llava_video()
    tower = model.model.vision_tower["vision_tower"]["vision_model"]
    sizes, alive = [], []
    activations: list[weakref.ref] = []

    def before(_, args):
        sizes.append(len(args[0]))
        alive.append(len([reference for reference in activations if reference() is not None]))

    tower.register_forward_pre_hook(before)
    for module in (*tower.encoder.layers, model.model.mm_projector[0]):
        module.register_forward_hook(lambda _, __, output: activations.append(weakref.ref(output)))
    LlavaVideo(model, frames_per_chunk=4).prompts(llava_inputs([[1, video(11), 2, video(3), 2]]))
    assert sizes == [4, 4, 3, 3]
    assert alive == [0, 0, 0, 0]
    assert len(activations) == 4 * 3


# Selection and answers, against plain loops


class PlainDecoder:
    """Qwen2 from its parameters alone: float64, a whole forward pass each time, positions 0, 1, 2, …"""

    def __init__(self, model):
        self.weights = {name: weight.double() for name, weight in model.state_dict().items()}

    def __call__(self, embeds):
        """Attention of each layer ``(heads, tokens, tokens)``, and the logits of every token."""
        x, attentions = embeds, []
        for layer in range(LAYERS):
            read, attention = self._attention(self._norm(x, f"layers.{layer}.input_layernorm"), layer)
            attentions.append(attention)
            x = x + read
            inner = self._norm(x, f"layers.{layer}.post_attention_layernorm")
            gate, up = (inner @ self._weight(f"layers.{layer}.mlp.{name}_proj").T for name in ("gate", "up"))
            x = x + (gate / (1 + torch.exp(-gate)) * up) @ self._weight(f"layers.{layer}.mlp.down_proj").T
        return attentions, self._norm(x, "norm") @ self.weights["lm_head.weight"].T

    def _weight(self, name):
        return self.weights[f"model.{name}.weight"]

    def _norm(self, x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self._weight(name)

    def _attention(self, x, layer):
        name = f"layers.{layer}.self_attn"
        q, k, v = (
            (x @ self._weight(f"{name}.{p}_proj").T + self.weights[f"model.{name}.{p}_proj.bias"]).chunk(heads, -1)
            for p, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        unseen = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        read, attentions = [], []
        for head in range(HEADS):
            of_group = head * KV_HEADS // HEADS
            logits = rotated(q[head]) @ rotated(k[of_group]).T / math.sqrt(q[head].shape[-1])
            attentions.append(logits.masked_fill(unseen, -math.inf).softmax(-1))
            read.append(attentions[-1] @ v[of_group])
        return torch.cat(read, -1) @ self._weight(f"{name}.o_proj").T, torch.stack(attentions)


def rotated(x):
    half = x.shape[-1] // 2
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] / ROPE_THETA ** (torch.arange(half).double() / half)
    first, second = x[:, :half], x[:, half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


@cache
def plain(seed):
    return llava_video(seed).double(), PlainDecoder(llava_video(seed))


def oracle(seed, row, budget, at_most, reduction="max", remainder="spread", rounded=True):
    """Select of, and answer, one prompt."""
    model, decoder = plain(seed)
    embeds, columns = layout(row, llava_inputs([row], seed=seed), model, torch.float64)
    answer, dropped, sets_before = Answer(), set(), 0
    every_visual = {column for of_video in columns for column in of_video}
    last = max(every_visual)
    for of_video, own_budget in zip(columns, share(budget, [len(c) for c in columns]), strict=True):
        frames = len(of_video) // A_FRAME
        if rounded:
            own_budget = math.ceil(own_budget / A_FRAME) * A_FRAME
        sets = deal(frames, at_most)
        scores, kept = [math.nan] * len(of_video), set(range(len(of_video)))
        for number, members in enumerate(sets):
            if own_budget >= len(of_video):
                break
            tokens = [frame * A_FRAME + i for frame in members for i in range(A_FRAME)]
            present = sorted(set(range(len(embeds))) - every_visual | {of_video[i] for i in tokens})
            rows = [present.index(column) for column in range(last + 1, len(embeds))]
            visual = [present.index(of_video[i]) for i in tokens]
            own = relevance(decoder(embeds[present])[0][LAYER], rows, visual, reduction)
            extra = number < own_budget % len(sets) if remainder == "spread" else 0
            quota = min(own_budget // len(sets) + extra, len(tokens))
            ranked = sorted(own, reverse=True)
            if quota < len(ranked):
                answer.score_margin = min(answer.score_margin, ranked[quota - 1] / ranked[quota] - 1)
            kept -= set(tokens) - {tokens[i] for i in top_k(own, quota)}
            for place, score in zip(tokens, own, strict=True):
                scores[place] = score
        dropped |= {column for i, column in enumerate(of_video) if i not in kept}
        answer.kept += [len(answer.scores) + i for i in sorted(kept)]
        answer.scores += scores
        answer.frame_set += [sets_before + i // A_FRAME % len(sets) for i in range(len(of_video))]
        sets_before += len(sets)
    answer.embeds = embeds[[column for column in range(len(embeds)) if column not in dropped]]
    answer.tokens, answer.logit_margin = greedy(answer.embeds, seed)
    return answer


def greedy(embeds, seed=SEED):
    """The answer without a cache: everything is read again for every new token."""
    model, decoder = plain(seed)
    tokens, margin = [], math.inf
    for _ in range(NEW_TOKENS):
        (best, second), (token, _) = (t.tolist() for t in decoder(embeds)[1][-1].topk(2))
        margin = min(margin, best - second)
        tokens.append(token)
        embeds = torch.cat([embeds, model.get_input_embeddings().weight[token][None].detach()])
    return tokens, margin


def assert_as_the_oracle_says(row, budget, at_most, *how, seed=SEED):
    wanted = oracle(seed, row, budget, at_most, *how)
    assert min(wanted.score_margin, wanted.logit_margin) > 1e-4, "rounding decides this case: choose another seed"
    (prompt,) = family(seed).prompts(llava_inputs([row], seed=seed))
    reduction, *rest = how or ("max",)
    selection = FlexSelect(family(seed).reference_layer(LAYER, reduction), budget, at_most, *rest)(prompt)
    assert selection.frame_set.tolist() == wanted.frame_set
    scores = torch.tensor(wanted.scores, dtype=torch.float64)
    torch.testing.assert_close(selection.scores.double(), scores, rtol=2e-5, atol=0, equal_nan=True)
    assert selection.visual_kept.nonzero().flatten().tolist() == wanted.kept
    assert selection.prompt.position_ids.tolist() == [list(range(len(wanted.embeds)))]
    torch.testing.assert_close(selection.prompt.inputs_embeds.double(), wanted.embeds, rtol=0, atol=1e-4)
    (answer,) = family(seed).generate([selection.prompt], max_new_tokens=NEW_TOKENS)
    assert answer.tolist() == wanted.tokens
    return selection


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("budget", [5, 24, 33])
@pytest.mark.parametrize("frames", [1, 4, 5, 13])  # less than a set, one set exactly, one frame more, several
@pytest.mark.parametrize("seed", [4, SEED])
def test_one_video(seed, frames, budget, reduction):
    selection = assert_as_the_oracle_says([4, video(frames), 6], budget, 4, reduction, seed=seed)
    assert selection.kept_tokens == min(-(-budget // A_FRAME) * A_FRAME, A_FRAME * frames)


@pytest.mark.parametrize("text", [1, 2])
def test_the_first_query_is_the_first_token_behind_the_video(text):
    """Its newline, in a real prompt; here it is all, or half, of the text there is."""
    assert_as_the_oracle_says([3, video(6), text], 12, 3, "mean")


@pytest.mark.parametrize(
    ("remainder", "rounded", "kept"), [("drop", True, 36), ("drop", False, 33), ("spread", False, 35)]
)
def test_other_ways_with_the_remainder(remainder, rounded, kept):
    """The paper's runs drop it and do not round."""
    selection = assert_as_the_oracle_says([4, video(20), 6], 35, 7, "max", remainder, rounded)
    assert selection.kept_tokens == kept


@pytest.mark.parametrize("row", [TWO_VIDEOS, [3, video(9), 2, video(9), 5], [video(7), video(2), 4]])
def test_several_videos(row):
    assert_as_the_oracle_says(row, 25, 3)


@pytest.mark.parametrize("budget", [5 * A_FRAME, 5 * A_FRAME - 5, 6720])
def test_a_budget_no_smaller_than_the_video_changes_nothing(budget):
    (prompt,) = family().prompts(llava_inputs([VIDEO_ROW]))
    selection = FlexSelect(family().reference_layer(LAYER), budget, max_frames_per_set=2)(prompt)
    assert selection.prompt is prompt
    assert selection.kept_tokens == selection.visual_tokens == 5 * A_FRAME
    assert bool(selection.scores.isnan().all())
    embeds, _ = layout(VIDEO_ROW, llava_inputs([VIDEO_ROW]), plain(SEED)[0], torch.float64)
    assert family().generate([selection.prompt], max_new_tokens=NEW_TOKENS)[0].tolist() == greedy(embeds)[0]


def selected(rows, budget):
    select = FlexSelect(family().reference_layer(LAYER), budget, max_frames_per_set=4)
    return [select(prompt).prompt for prompt in family().prompts(llava_inputs(rows, seed=SEED))]


@pytest.mark.parametrize("budget", [12, 24, 6720])
def test_a_batch_is_answered_as_its_rows_are(budget):
    rows = [VIDEO_ROW, TEXT_ROW, TWO_VIDEOS, LONG_ROW]
    batch = selected(rows, budget)
    assert len({len(prompt) for prompt in batch}) == len(rows)
    together = family().generate(batch, max_new_tokens=NEW_TOKENS)
    alone = [family().generate([prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in batch]
    assert [answer.tolist() for answer in together] == [answer.tolist() for answer in alone]
    assert [answer.tolist() for answer in together] == [greedy(p.inputs_embeds.double())[0] for p in batch]
    assert len({tuple(answer.tolist()) for answer in together}) == len(rows)


def test_an_answer_ends_where_the_model_ends_it():
    """Only new tokens come back, and what a shorter answer lacks is padding."""
    batch = selected([VIDEO_ROW, LONG_ROW], 12)
    short, long = (greedy(prompt.inputs_embeds.double())[0] for prompt in batch)
    end = short[3]
    assert end not in (*short[:3], *long)
    answers = family().generate(batch, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=0)
    assert [answer.tolist() for answer in answers] == [[*short[:4], 0], long]


# Likelihoods


@pytest.mark.parametrize("budget", [12, 6720])
@pytest.mark.parametrize("row", [VIDEO_ROW, TWO_VIDEOS])
@pytest.mark.parametrize("length", [1, 4])
def test_a_continuation_is_judged_by_what_stands_before_each_of_its_tokens(row, length, budget):
    (prompt,) = selected([row], budget)
    continuation = torch.randint(1, 96, (length,), generator=torch.Generator().manual_seed(length))
    logits = family().continuation_logits(prompt, continuation)
    model, decoder = plain(SEED)
    behind = model.get_input_embeddings().weight[continuation].detach()
    everything = decoder(torch.cat([prompt.inputs_embeds.double(), behind]))[1]
    expected = everything[len(prompt) - 1 : len(prompt) - 1 + length].log_softmax(-1)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double().log_softmax(-1), expected, rtol=0, atol=1e-4)
    loss = (
        -sum(float(of_place[token]) for of_place, token in zip(expected, continuation.tolist(), strict=True)) / length
    )
    assert float(continuation_loss(logits, continuation)) == pytest.approx(loss, abs=1e-5)


def test_an_answer_is_its_own_likeliest_continuation():
    (prompt,) = selected([LONG_ROW], 24)
    (answer,) = family().generate([prompt], max_new_tokens=NEW_TOKENS)
    assert torch.equal(family().continuation_logits(prompt, answer).argmax(-1), answer)


def test_the_reference_layer_reads_this_models_decoder():
    selector = family().reference_layer(3, "mean")
    assert selector.decoder is family().decoder is family().model.model
    assert (selector.layer, selector.reduction) == (3, "mean")
