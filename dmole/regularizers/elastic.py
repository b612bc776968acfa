"""Elastic weight consolidation: parameters stay close to their values after earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.distributed import sum_over_ranks
from dmole.regularizers.anchors import elastic_penalty, merge_anchors, merge_importance
from dmole.regularizers.base import (
    Regularizer,
    StageView,
    Step,
    on_their_devices,
    training_parameters,
)
from dmole.steps.finite import NonFiniteError, describe


class ElasticWeights(Regularizer):
    r"""Keeps the shared adapter close to its values after each task, by importance (EWC).

    .. math:: \frac{\lambda}{2} \sum_{k<t} \sum_p F_{k,p} (\theta_p - \theta^*_{k,p})^2, \qquad
        F_{k,p} = \mathbb{E}_x [(\partial \ell(x) / \partial \theta_p)^2]

    The sum over the tasks is kept as one quadratic function of an anchor and an importance,
    whatever the number of tasks (:func:`~dmole.regularizers.merge_anchors`). Both are on the
    device of the parameters while a stage trains.

    Gradients are computed sample by sample: the gradient of a batch's mean would reduce the
    importance by about the batch size.

    Args:
        coefficient: The :math:`\lambda`; 0 disables the term.
        samples: Training samples of a stage on which the importance is measured.
        online: Keep one anchor (after the last task) and one decaying importance for all tasks.
        decay: Factor on the old importance after each task, for ``online``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Elastic weight consolidation, 2017, https://arxiv.org/abs/1612.00796; online form of
        Progress & Compress, 2018, https://arxiv.org/abs/1805.06370. The coefficients of
        D-MoLE's authors are not published.
    """

    mean_over = "steps"

    def __init__(
        self,
        coefficient: float = 5000.0,
        samples: int = 200,
        online: bool = False,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        if coefficient < 0 or samples < 1 or not 0 <= decay <= 1:
            raise ValueError(
                f"coefficient must not be negative, samples at least 1 and decay in [0, 1], got "
                f"{coefficient}, {samples} and {decay}"
            )
        self.coefficient = coefficient
        self.samples = samples
        self.online = online
        self.decay = decay
        self._anchors: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._rest = 0.0  # half of the weighted squared distances between the tasks' own anchors
        self._placed: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def before_stage(self, stage: StageView) -> None:
        """Check that the stage trains the adapter with the anchors.

        Raises:
            ValueError: If the stage trains other parameters.
        """
        if self._anchors and self._anchors.keys() != stage.parameters().keys():
            raise ValueError(
                "ElasticWeights needs one adapter that all stages train: give the stream "
                "a shared_expert"
            )

    def forward(self, step: Step) -> Tensor:
        """Return the weighted penalty over all earlier tasks; see :class:`Regularizer`."""
        if not self.coefficient or not self._anchors:
            return step.zero()
        current = training_parameters(step.library, step.experts)
        if self._placed is None:
            anchors = on_their_devices(self._anchors, current)
            self._placed = anchors, on_their_devices(self._importance, current)
        penalty = elastic_penalty(current, *self._placed)
        return self.coefficient * (penalty + self._rest)

    def after_stage(self, stage: StageView) -> None:
        """Measure the importance of the stage's parameters.

        Raises:
            NonFiniteError: If a gradient is not finite; names parameter and sample.
        """
        self._placed = None
        if not self.coefficient:
            return
        current = stage.parameters()
        total = {
            name: torch.zeros_like(value, dtype=torch.float32) for name, value in current.items()
        }
        count = 0
        for batch in stage.samples(self.samples, 1):
            loss, _ = stage.step(batch)
            count += batch.real
            gradients = torch.autograd.grad(loss, list(current.values()), allow_unused=True)
            if reason := describe(dict(zip(current, gradients, strict=True))):
                sample = f"{batch.task_names[0]}/{batch.sample_ids[0]}"
                raise NonFiniteError(f"ElasticWeights: the gradient of {reason} for {sample}")
            for name, gradient in zip(current, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.float() ** 2
        device = next(iter(current.values())).device
        samples = sum_over_ranks(torch.tensor(float(count), device=device))
        mean = {name: (sum_over_ranks(value) / samples).cpu() for name, value in total.items()}
        anchors = {name: value.detach().clone().cpu() for name, value in current.items()}
        self._add(anchors, mean)

    def _add(
        self, anchors: dict[str, Tensor], importance: dict[str, Tensor], rest: float = 0.0
    ) -> None:
        """Add the anchors and the importance of a further task to the penalty."""
        if self._anchors:
            if not self.online:
                old = self._anchors, self._importance
                anchors, between = merge_anchors(*old, anchors, importance)
                rest += self._rest + between
            decay = self.decay if self.online else 1.0
            importance = merge_importance(self._importance, importance, decay)
        self._anchors, self._importance, self._rest = anchors, importance, rest

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return anchor and importance."""
        kinds = (("anchor", self._anchors), ("importance", self._importance))
        tensors = {
            f"0/{kind}/{name}": tensor for kind, table in kinds for name, tensor in table.items()
        }
        rest = torch.tensor(self._rest, dtype=torch.float64)
        return {**tensors, "0/rest/": rest} if self._rest else tensors

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved state; that of an older checkpoint has a pair of tables for each task."""
        tables: dict[tuple[int, str], dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, kind, name = key.split("/", 2)
            tables.setdefault((int(number), kind), {})[name] = tensor.clone()
        self._anchors, self._importance, self._rest, self._placed = {}, {}, 0.0, None
        for index in sorted({index for index, kind in tables if kind == "anchor"}):
            rest = float(tables.get((index, "rest"), {}).get("", 0.0))
            self._add(tables[index, "anchor"], tables[index, "importance"], rest)
