"""Teacher and student on one prompt: what gets gradients, what does not, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.training.losses import LOSSES, spearman_loss
from lmms_flexselect.training.objective import Example, RankSupervision
from lmms_flexselect.training.student import unused


def supervision(trained, loss=spearman_loss, **options):
    return RankSupervision(trained.student(), trained.teacher, loss, **options)


def test_every_weight_that_scores_gets_a_gradient_and_no_other(trained):
    module = supervision(trained).train()
    before = {name: weight.clone() for name, weight in trained.family.model.state_dict().items()}
    outputs = module([trained.examples(1)[0]])
    outputs["loss"].backward()
    idle = {id(p) for p in unused(module.student)}
    for name, parameter in module.named_parameters():
        if id(parameter) in idle:
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in trained.family.model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in trained.family.model.state_dict().items())


def test_the_teachers_weights_are_none_of_the_module(trained):
    module = supervision(trained)
    assert {name.split(".")[0] for name in module.state_dict()} == {"student"}
    assert module.state_dict().keys() == {f"student.{name}" for name in module.student.state_dict()}


def test_scores_are_those_of_evaluation(trained):
    module = supervision(trained).eval()
    prompt = module.teacher.prompt(trained.examples(1)[0])
    columns = prompt.visual.nonzero().squeeze(-1)
    lite = trained.family.lite(module.student)
    _, expected = lite(prompt, columns, [torch.ones(len(columns), dtype=torch.bool)], [3])
    # With gradients a prompt is read in one go, without in two steps.
    torch.testing.assert_close(module.scores(prompt).detach(), expected, rtol=1e-5, atol=0)
    reference = trained.family.reference_layer(module.teacher.layer)
    _, wanted = reference(prompt, columns, [torch.ones(len(columns), dtype=torch.bool)], [3])
    assert torch.equal(module.teacher.scores(prompt), wanted)


def test_teacher_and_student_are_read_with_the_teachers_reduction(llava):
    module = RankSupervision(llava.student(), replace(llava.teacher, reduction="mean"), spearman_loss).eval()
    prompt = module.teacher.prompt(llava.examples(1)[0])
    whole = [torch.arange(int(prompt.visual.sum()))]
    columns = prompt.visual.nonzero().squeeze(-1)
    wanted = llava.family.reference_layer(llava.teacher.layer, "mean").scores(prompt, columns, whole)
    assert torch.equal(module.teacher.scores(prompt), wanted)
    own = llava.family.lite(module.student, "mean")
    _, expected = own(prompt, columns, [torch.ones(len(columns), dtype=torch.bool)], [3])
    torch.testing.assert_close(module.scores(prompt).detach(), expected, rtol=1e-5, atol=0)


def test_gradient_checkpointing_changes_no_gradient(trained):
    grads = []
    for checkpointing in (False, True):
        module = supervision(trained).train()
        if checkpointing:
            module.gradient_checkpointing_enable()
            assert module.student.decoder.layers[0].gradient_checkpointing
        module([trained.examples(1)[0]])["loss"].backward()
        grads.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_against_the_gradient_lowers_the_loss(llava, loss):
    module = RankSupervision(llava.student(), llava.teacher, LOSSES[loss]).train()
    examples = [llava.examples(4)[i] for i in range(4)]
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    before = module(examples)["loss"]
    before.backward()
    optimizer.step()
    assert module(examples)["loss"] < before


def test_known_scores_are_used_and_computed_ones_remembered(llava):
    remembered: dict[str, torch.Tensor] = {}
    module = supervision(llava, remember=remembered.__setitem__)
    example = llava.examples(1)[0]
    fresh = module([example])["loss"]
    assert remembered.keys() == {example.name}
    again = module([Example(example.name, example.inputs, remembered[example.name])])["loss"]
    assert torch.equal(fresh, again)
    backwards = module([Example(example.name, example.inputs, 1 / remembered[example.name])])["loss"]
    torch.testing.assert_close(backwards, 2 - fresh)  # the order turned round: one minus a correlation


def test_measures_are_means_over_the_examples(llava):
    module = supervision(llava)
    examples = [llava.examples(3)[i] for i in range(3)]
    together = module(examples)
    alone = [module([example]) for example in examples]
    for name in ("loss", "rank_correlation", "top_k_overlap"):
        torch.testing.assert_close(together[name], torch.stack([one[name] for one in alone]).mean())
    assert int(together["examples"]) == 3


def test_measures_are_those_of_the_scores(llava):
    """The overlap is of the best sixteenth: a teacher's scores are the student's, with a few of the best made worst."""
    module = RankSupervision(llava.student(), llava.teacher, lambda got, wanted: got.sum()).eval()
    example = llava.examples(1)[0]
    ours = module.scores(module.teacher.prompt(example)).detach()
    order, best = ours.argsort(descending=True), round(len(ours) / 16)
    for swapped in (0, best // 3):
        theirs = ours.clone()
        theirs[order[:swapped]] = ours.min() / 2
        measured = module([Example(example.name, example.inputs, theirs)])
        assert float(measured["top_k_overlap"]) == pytest.approx((best - swapped) / best)
        correlation = stats.spearmanr(ours, theirs).statistic
        assert float(measured["rank_correlation"]) == pytest.approx(correlation)
    assert 0 < swapped < best
    assert correlation < 0.99


def test_a_loss_that_is_no_number_names_its_example(llava):
    module = RankSupervision(llava.student(), llava.teacher, lambda got, wanted: got.sum() * float("nan"))
    with pytest.raises(FlexSelectError, match=r"^needle 1/0: the loss is nan; nothing was learned from it$"):
        module([llava.examples(1)[0]])


def test_scores_of_another_sampling_are_refused(llava):
    example = llava.examples(1)[0]
    with pytest.raises(FlexSelectError, match=r"^needle 1/0: the teacher's 5 cached scores do not fit its \d+ visual"):
        supervision(llava)([Example(example.name, example.inputs, torch.rand(5))])
