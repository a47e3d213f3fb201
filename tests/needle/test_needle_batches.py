import numpy as np
import pytest
import torch

from lmms_flexselect.needle import needle_families
from lmms_flexselect.needle.batches import IGNORED, Batch, Trainee, training_batch
from lmms_flexselect.needle.train import needle_class
from lmms_flexselect.needle.videos import COLOURS


@pytest.fixture(scope="module", params=needle_families())
def trainee(request: pytest.FixtureRequest) -> Trainee:
    return needle_class(request.param)()


def drawn(trainee: Trainee, scaffold: bool, units: int = 5, needles: int = 4) -> Batch:
    return training_batch(trainee, np.random.default_rng(0), 3, units, needles, max_step=8.0, scaffold=scaffold)


def answers_in(trainee: Trainee, ids: torch.Tensor) -> list[str]:
    text = trainee.tokenizer.decode(ids.clamp(min=0))
    return [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>assistant\n")[1:]]


def test_labels_are_the_answers_and_the_ends_of_their_turns(trainee: Trainee) -> None:
    batch = drawn(trainee, scaffold=True)
    assert batch.ids.shape == batch.labels.shape
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        words = trainee.tokenizer.decode(labels[labels != IGNORED]).split("<|im_end|>")
        answers = answers_in(trainee, ids)
        # The shape is asked for twice: as a hint at the colour word, and where the answer belongs.
        assert words == [2 * answer for answer in answers] + [""]
        assert len(answers) == 4
        hinted = ids[:-1][(labels[1:] != IGNORED)][::3]
        assert set(trainee.tokenizer.decode(hinted).split()) <= set(COLOURS)


def test_without_a_scaffold_the_answer_alone_is_asked_for(trainee: Trainee) -> None:
    batch = drawn(trainee, scaffold=False)
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        asked = [trainee.tokenizer.decode([label]) for label in labels[labels != IGNORED]]
        assert asked == answers_in(trainee, ids)


def test_the_loss_can_be_taken(trainee: Trainee) -> None:
    batch = drawn(trainee, scaffold=True)
    logits = trainee.model(**trainee.inputs(batch)).logits
    assert logits.shape == (*batch.ids.shape, len(trainee.tokenizer))
    logits.sum().backward()
    assert all(weight.grad is not None for name, weight in trainee.model.named_parameters() if "post_layer" not in name)


def test_needles_are_where_the_frames_are_brightest(trainee: Trainee) -> None:
    batch = drawn(trainee, scaffold=False, units=7)
    assert batch.frames.shape == (3, 7, 3, 56, 56)
    assert batch.needles.sum((1, 2)).tolist() == [4, 4, 4]
    quadrants = batch.frames.unflatten(-1, (2, 28)).unflatten(-3, (2, 28)).amax(2)  # (3, 7, 2, 28, 2, 28)
    bright = (quadrants > 190).sum((-3, -1)).flatten(2)
    torch.testing.assert_close(bright > 50, batch.needles)


def test_all_families_see_the_same_videos() -> None:
    one, *others = (drawn(needle_class(name)(), scaffold=False) for name in needle_families())
    assert len(others) >= 2
    for other in others:
        assert one.frames.equal(other.frames)
        assert one.step == other.step


def test_the_draws_stay() -> None:
    """Or the command in a model card would train another model than the one beside it."""
    batch = drawn(needle_class("qwen2_5_vl")(), scaffold=False)
    assert batch.step == pytest.approx(4.766998)
    assert batch.needles[0].nonzero().tolist() == [[0, 2], [1, 1], [2, 3], [3, 3]]
    assert batch.frames.mean().item() == pytest.approx(85.01476)
