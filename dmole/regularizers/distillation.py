"""Keeping the answers of an earlier model on the inputs of a new task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmole.experts.library import eval_mode
from dmole.regularizers.base import Regularizer, StageView, Step

IGNORED = -100
"""Label of a token that no loss counts."""


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 2.0
) -> Tensor:
    r"""Return how far the student's answer tokens are from the teacher's.

    .. math::
        \frac{\tau^2}{|V|} \sum_{v \in V} \mathrm{KL}\big(
        \mathrm{softmax}(z^{\text{teacher}}_v / \tau) \,\|\,
        \mathrm{softmax}(z^{\text{student}}_v / \tau) \big)

    over the positions :math:`V` whose next token has a label, as in the loss of a causal language
    model. Value and gradient are exactly zero where both logits are equal. Only the rows of
    :math:`V` are widened to float32 and one of them is kept for the backward pass.

    Args:
        student_logits: Shape ``(B, T, V)``.
        teacher_logits: Shape ``(B, T, V)``; no gradient.
        labels: ``(B, T)``, not shifted; -100 where a token does not count.
        temperature: Positive :math:`\tau`; above 1 it stresses the less likely tokens.

    Returns:
        Scalar, float32; zero where no token counts.

    Raises:
        ValueError: If the shapes do not fit together or the temperature is not positive.

    Source:
        Learning without Forgetting, 2016, https://arxiv.org/abs/1606.09282; the scale
        :math:`\tau^2` is Hinton et al., 2015, https://arxiv.org/abs/1503.02531; answer tokens
        and temperature 2 are ours.

    Example:
        >>> logits = torch.randn(1, 3, 5)
        >>> distillation(logits, logits, torch.tensor([[-100, 4, 2]]))
        tensor(0.)
    """
    shape = student_logits.shape
    if len(shape) != 3 or teacher_logits.shape != shape or labels.shape != shape[:2]:
        raise ValueError(
            f"expected logits (B, T, V) twice and labels (B, T), got {tuple(shape)}, "
            f"{tuple(teacher_logits.shape)} and {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    counted = labels[:, 1:] != IGNORED  # (B, T - 1)
    student = student_logits[:, :-1][counted]  # (M, V), M answer tokens
    teacher = teacher_logits[:, :-1][counted].detach()  # (M, V)
    divergence: Tensor = _Divergence.apply(student, teacher, temperature)  # type: ignore[no-untyped-call]
    return divergence * temperature**2 / max(1, len(student))


class _Divergence(torch.autograd.Function):
    """Summed KL(teacher || student) of rows of logits with the gradient in closed form.

    The gradient of the two softmaxes, taken apart by autograd, leaves rounding errors where both
    agree, which an adaptive optimiser would blow up to full steps.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ours = (student.float() / temperature).log_softmax(dim=-1)
        theirs = (teacher.float() / temperature).log_softmax(dim=-1)
        likely = theirs.exp()
        ctx.save_for_backward((ours.exp() - likely) / temperature)
        ctx.dtype = student.dtype
        # a token ruled out by the teacher adds nothing, though its logarithm is infinite
        return (likely * (theirs - ours)).masked_fill_(likely == 0, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return (grad * difference).to(ctx.dtype), None, None


class Distillation(Regularizer):
    r"""Keeps the answers to the current task's inputs near those before the stage (LwF).

    .. math:: \lambda T^2 \, \mathrm{KL}(\text{before} \,\|\, \text{now})

    on the answer tokens. The teacher is the same model with the values that the experts in
    training had when the stage began, so that no second base model is held. In the first stage
    there is nothing to keep.

    Args:
        coefficient: The :math:`\lambda`; 0 leaves the loss as it is.
        temperature: The :math:`T`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Learning without Forgetting, 2016, https://arxiv.org/abs/1606.09282, on a LoRA adapter. The
        coefficients that D-MoLE's authors used for this baseline are not published.
    """

    per_token = True

    def __init__(self, coefficient: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__()
        if coefficient < 0 or temperature <= 0:
            raise ValueError(
                f"coefficient must not be negative and temperature be positive, got {coefficient} "
                f"and {temperature}"
            )
        self.coefficient = coefficient
        self.temperature = temperature
        self._teacher: dict[str, Tensor] = {}

    def before_stage(self, stage: StageView) -> None:
        """Keep the values that the experts have now."""
        named = stage.parameters() if stage.index > 1 else {}
        self._teacher = {name: value.detach().clone() for name, value in named.items()}

    def forward(self, step: Step) -> Tensor:
        """Return the weighted divergence; see :class:`Regularizer`."""
        if not self.coefficient or not self._teacher:
            return step.logits.new_zeros(())
        library = step.library
        with torch.no_grad(), library.replaced(self._teacher), eval_mode(library.model):
            teacher = step.forward()  # (B, T, V)
        found = distillation(step.logits, teacher, step.labels, self.temperature)
        return self.coefficient * found

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the teacher."""
        return dict(self._teacher)

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved teacher."""
        self._teacher = {name: value.clone() for name, value in tensors.items()}
