from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import kl_div
from torch.testing import assert_close

from dmole.regularizers import distillation


def both(tokens: int = 5, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)


def test_two_class_logits_have_the_closed_form() -> None:
    student = torch.tensor([[math.log(3.0), 0.0]])  # 3/4 and 1/4
    teacher = torch.zeros(1, 2)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    loss = distillation(student, teacher, temperature=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    doubled = distillation(2 * student, teacher, temperature=2.0)
    assert doubled.item() == pytest.approx(4 * expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_value_and_gradient_are_those_of_the_divergence(temperature: float) -> None:
    student, teacher = both()
    theirs = (teacher / temperature).log_softmax(-1)
    ours = (student / temperature).log_softmax(-1)
    expected = temperature**2 * kl_div(ours, theirs, reduction="batchmean", log_target=True)
    loss = distillation(student, teacher, temperature)
    assert_close(loss, expected)
    gradients = [torch.autograd.grad(each, student)[0] for each in (loss, expected)]
    assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_give_exactly_zero_and_no_gradient_at_all(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(5, 1000)).to(dtype)
    student = logits.clone().requires_grad_()
    loss = distillation(student, logits)
    loss.backward()
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    assert not student.grad.any()


def test_no_answer_token_costs_nothing() -> None:
    student, teacher = both(tokens=0)
    loss = distillation(student, teacher)
    loss.backward()
    assert loss == 0


def test_tokens_ruled_out_by_both_models_add_nothing() -> None:
    student, teacher = both()
    shut = torch.tensor([0.0, 0, 0, 0, 0, -torch.inf])
    loss = distillation(student + shut, teacher + shut)
    loss.backward()
    assert_close(loss, distillation(student[..., :5], teacher[..., :5]))
    assert student.grad.isfinite().all()


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = both()
    teacher.requires_grad_()
    distillation(student, teacher).backward()
    assert teacher.grad is None


def test_bad_arguments_are_refused_with_their_value() -> None:
    student, teacher = both()
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        distillation(student, teacher, temperature=0)
    with pytest.raises(ValueError, match=r"and \(4, 6\)"):
        distillation(student, teacher[1:])
