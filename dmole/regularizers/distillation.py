"""Distillation from the model before a stage, on the inputs of the new task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmole.experts.library import eval_mode
from dmole.regularizers.base import (
    Regularizer,
    StageView,
    Step,
    on_their_devices,
    training_parameters,
)


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0
) -> Tensor:
    r"""Return the divergence between student and teacher on the answer tokens.

    .. math::
        \frac{\tau^2}{|V|} \sum_{v \in V} \mathrm{KL}\big(
        \mathrm{softmax}(z^{\text{teacher}}_v / \tau) \,\|\,
        \mathrm{softmax}(z^{\text{student}}_v / \tau) \big)

    over the positions :math:`V` whose next token has a label, as in the loss of a causal language
    model. Value and gradient are exactly zero where both logits are equal. One float32 matrix of
    their shape is kept for the backward pass.

    Args:
        student_logits: ``(M, V)`` for ``M`` answer tokens.
        teacher_logits: ``(M, V)``; no gradient.
        temperature: Positive :math:`\tau`; values above 1 emphasize less likely tokens.

    Returns:
        Scalar, float32; zero if there are no answer tokens.

    Raises:
        ValueError: If the shapes do not match or the temperature is not positive.

    Source:
        Learning without Forgetting, 2016, https://arxiv.org/abs/1606.09282; the scale
        :math:`\tau^2` is Hinton et al., 2015, https://arxiv.org/abs/1503.02531; answer tokens
        and temperature 2 are ours.

    Example:
        >>> logits = torch.randn(3, 5)
        >>> distillation(logits, logits)
        tensor(0.)
    """
    shape = student_logits.shape
    if len(shape) != 2 or teacher_logits.shape != shape:
        raise ValueError(
            f"expected logits (M, V) twice, got {tuple(shape)} and {tuple(teacher_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    divergence: Tensor = _Divergence.apply(student_logits, teacher_logits.detach(), temperature)  # type: ignore[no-untyped-call]
    return divergence * temperature**2 / max(1, shape[0])


class _Divergence(torch.autograd.Function):
    """Summed KL(teacher || student) of rows of logits, with the gradient in closed form.

    Autograd's gradient of the two softmaxes has rounding errors where both agree, which an
    adaptive optimizer would amplify to full steps.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        student_log = (student.float() / temperature).log_softmax(dim=-1)
        teacher_log = (teacher.float() / temperature).log_softmax(dim=-1)
        target = teacher_log.exp()
        ctx.save_for_backward((student_log.exp() - target) / temperature)
        ctx.dtype = student.dtype
        # a token with probability 0 under the teacher adds 0, though its logarithm is infinite
        return (target * (teacher_log - student_log)).masked_fill_(target == 0, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return (grad * difference).to(ctx.dtype), None, None


class Distillation(Regularizer):
    r"""Keeps predictions on the current task's inputs close to those before the stage (LwF).

    .. math:: \lambda T^2 \, \mathrm{KL}(\text{before} \,\|\, \text{now})

    on the answer tokens. The teacher is the same model with the values that the experts in
    training had at the start of the stage, so no second base model is held. In the first stage
    the term is zero.

    Args:
        coefficient: The :math:`\lambda`; 0 disables the term.
        temperature: The :math:`T`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Learning without Forgetting, 2016, https://arxiv.org/abs/1606.09282, on a LoRA adapter. The
        coefficients of D-MoLE's authors for this baseline are not published.
    """

    per_token = True
    passes = "alike"

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
        self._placed: dict[str, Tensor] = {}  # the teacher on the device, while a stage trains

    def before_stage(self, stage: StageView) -> None:
        """Store the current values of the experts."""
        named = stage.parameters() if stage.index > 1 else {}
        self._teacher = {name: value.detach().clone() for name, value in named.items()}
        self._placed = {}

    def after_stage(self, stage: StageView) -> None:
        """Move the teacher to host memory."""
        self._placed = {}
        self._teacher = {name: value.cpu() for name, value in self._teacher.items()}

    def forward(self, step: Step) -> Tensor:
        """Return the weighted divergence; see :class:`Regularizer`."""
        if not self.coefficient or not self._teacher:
            return step.zero()
        library = step.library
        if not self._placed:
            current = training_parameters(library, step.experts)
            self._placed = on_their_devices(self._teacher, current)
        with torch.no_grad(), library.replaced(self._placed), eval_mode(library.model):
            teacher = step.forward()  # (M, V)
        divergence = distillation(step.logits, teacher, self.temperature)
        return self.coefficient * divergence

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the teacher."""
        return dict(self._teacher)

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved teacher."""
        self._teacher = {name: value.clone() for name, value in tensors.items()}
        self._placed = {}
