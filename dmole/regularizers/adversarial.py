"""Adversarial task classification: gradient reversal and the classifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dmole.regularizers.base import Regularizer, StageView, Step
from dmole.transfer import to_device


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Return ``x`` unchanged; its gradient is negated and scaled in the backward pass.

    .. math:: y = x, \qquad \partial L / \partial x = -\lambda \, \partial L / \partial y

    Later parameters learn to lower the loss, earlier parameters learn to raise it.

    Args:
        x: Any shape.
        scale: The :math:`\lambda`; 0 blocks the gradient.

    Source:
        Domain-adversarial training, 2016, https://arxiv.org/abs/1505.07818. MoE-CL, 2025,
        https://arxiv.org/abs/2509.18133, negates the classifier's gradient after the backward
        pass instead.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> reverse_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000])
    """
    result: Tensor = _Reversal.apply(x, scale)  # type: ignore[no-untyped-call]
    return result


class _Reversal(torch.autograd.Function):
    """Identity with gradient ``-scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


class AdversarialTask(Regularizer):
    r"""Removes task-specific features from the common expert, by an adversarial classifier.

    .. math:: \min_D L_{adv}, \quad \min_{\theta} L - w L_{adv}, \qquad
        L_{adv} = \mathrm{CE}(D(\text{mean of the common expert's output}), t)

    in one step, by reversing the gradient between expert and classifier. In a purely sequential
    stream the classifier sees a single task per stage. It soon predicts that task always, and the
    term has little effect. Replay changes that.

    Args:
        coefficient: The :math:`w`; 0 disables the classifiers, too.
        targets: Regular expression of the language model's linears whose common expert is
            classified.
        seed: Seed of the classifiers' initial weights.

    Raises:
        ValueError: If the coefficient is negative.

    Source:
        MoE-CL, 2025, https://arxiv.org/abs/2509.18133. The authors' code applies the
        cross-entropy to probabilities after a softmax, which flattens its gradient; here it is
        applied to logits.
    """

    records = True
    mean_over = "samples"

    def __init__(
        self, coefficient: float = 1.0, targets: str = "down_proj$", seed: int = 0
    ) -> None:
        super().__init__()
        if coefficient < 0:
            raise ValueError(f"coefficient must not be negative, got {coefficient}")
        re.compile(targets)
        self.coefficient = coefficient
        self.targets = targets
        self.seed = seed
        self.classifiers = nn.ModuleList()
        self._indices: dict[str, int] = {}
        self._tasks: tuple[str, ...] = ()

    def before_stage(self, stage: StageView) -> None:
        """Create the classifiers in the first stage: one per linear, each over all tasks.

        In a run that extends a finished one they have fewer rows, and get those of the new tasks
        with the initial weights of a run that had all tasks from its start.
        """
        common = stage.experts[-1] if len(stage.experts) > 1 else None
        widths = {
            path: expert.up.shape[0]
            for path, expert in (stage.library.experts(common) if common else ())
            if expert.shape.heads
            and re.search(self.targets, path)
            and stage.library.modality(path) == "language"
        }
        if not widths:
            raise ValueError(
                f"AdversarialTask: no common expert is mixed in a linear of {self.targets!r}; it "
                "needs a CommonExpertRouter with CommonMixing"
            )
        self._indices = {path: index for index, path in enumerate(widths)}
        self._tasks = stage.all_tasks
        learned = [parameter.data.cpu() for parameter in self.classifiers.parameters()]
        if learned and len(learned[0]) == len(stage.all_tasks):
            return
        self.classifiers = self._fresh(list(widths.values()), len(stage.all_tasks))
        for parameter, rows in zip(self.classifiers.parameters(), learned, strict=False):
            parameter.data[: len(rows)] = rows
        self.to(next(iter(stage.parameters().values())).device)

    def _fresh(self, widths: Sequence[int], tasks: int) -> nn.ModuleList:
        """Return classifiers with initial weights, the same for the same numbers."""
        generator = torch.Generator().manual_seed(self.seed)
        classifiers = _classifiers(widths, tasks)
        for parameter in classifiers.parameters():
            nn.init.normal_(parameter.data, std=0.02, generator=generator)
        return classifiers

    def build_parameters(self, saved: Mapping[str, Tensor]) -> None:
        """Create classifiers of the saved shapes; see :class:`Regularizer`."""
        numbered = {int(name.split(".")[1]): value.shape for name, value in saved.items()}
        shapes = [numbered[index] for index in sorted(numbered)]
        if not len(self.classifiers) and shapes:
            self.classifiers = _classifiers([shape[1] for shape in shapes], shapes[0][0])

    def forward(self, step: Step) -> Tensor:
        """Return the classifiers' mean loss, reversed for the experts; see :class:`Regularizer`."""
        if not self.coefficient:  # else the classifiers' gradients would affect gradient clipping
            return sum((p.sum() * 0.0 for p in self.parameters()), step.zero())
        names = step.batch.task_names
        truth = to_device(
            torch.tensor([self._tasks.index(name) for name in names]), step.labels.device
        )
        answered = (step.labels[:, 1:] != -100).any(dim=1)  # a repeated sample has no labels
        truth = truth.masked_fill(~answered, -100)  # the host would wait for a selection of rows
        losses = []
        for record in step.gates.records if step.gates is not None else ():
            if record.path in self._indices and record.output is not None:
                features = reverse_gradient(record.output.float(), self.coefficient)  # (B, out)
                logits = self.classifiers[self._indices[record.path]](features)  # (B, tasks)
                losses.append(cross_entropy(logits, truth))
        return torch.stack(losses).mean() if losses else step.zero()


def _classifiers(widths: Sequence[int], tasks: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, tasks, bias=False) for width in widths)
