"""Elastic weight consolidation: parameters stay close to their values after earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.distributed import sum_over_ranks
from dmole.regularizers.base import Regularizer, StageView, Step, training_parameters
from dmole.steps.finite import NonFiniteError, describe


def elastic_penalty(
    parameters: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
) -> Tensor:
    r"""Return the squared distance to the anchors, weighted by importance.

    .. math:: \frac{1}{2} \sum_p F_p \, (\theta_p - \theta^*_p)^2

    Args:
        parameters: The :math:`\theta` by name, any shapes.
        anchors: The :math:`\theta^*` of the same names and shapes; no gradient.
        importance: The :math:`F \ge 0` of the same names and shapes; no gradient.

    Returns:
        Scalar, at least float32; zero where there are no parameters.

    Raises:
        ValueError: If names or shapes differ.

    Source:
        Elastic weight consolidation, 2017, https://arxiv.org/abs/1612.00796.

    Example:
        >>> two = torch.tensor([2.0])
        >>> elastic_penalty({"a": 3 * two}, {"a": two}, {"a": torch.tensor([0.5])})
        tensor(4.)
    """
    if not parameters.keys() == anchors.keys() == importance.keys():
        differing = (parameters.keys() ^ anchors.keys()) | (anchors.keys() ^ importance.keys())
        raise ValueError(f"parameters, anchors and importance differ in {sorted(differing)}")
    total = torch.zeros(())
    for name, parameter in parameters.items():
        _check_shape(name, parameter, anchors[name])
        _check_shape(name, parameter, importance[name])
        moved = _widened(parameter) - _widened(anchors[name].detach())
        total = total.to(moved.device) + (_widened(importance[name].detach()) * moved**2).sum()
    return total / 2


def merge_importance(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], decay: float = 1.0
) -> dict[str, Tensor]:
    r"""Return the importance after one further task, :math:`F \leftarrow \gamma F + F_t`.

    Args:
        old: The :math:`F` by name; empty before the first task.
        new: The :math:`F_t` of the latest task. A name that one mapping lacks counts as zero.
        decay: The :math:`\gamma` in ``[0, 1]``; 1 weighs all tasks equally, 0 uses the last one
            alone.

    Returns:
        New tensors by name; the arguments are unchanged.

    Raises:
        ValueError: If ``decay`` is out of range or shapes differ.

    Source:
        Online EWC in Progress & Compress, 2018, https://arxiv.org/abs/1805.06370.

    Example:
        >>> merge_importance({"a": torch.ones(1)}, {"a": torch.ones(1)}, decay=0.5)
        {'a': tensor([1.5000])}
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    merged = {name: decay * tensor.detach() for name, tensor in old.items()}
    for name, tensor in new.items():
        if name in merged:
            _check_shape(name, merged[name], tensor)
            merged[name] = merged[name] + tensor.detach()
        else:
            merged[name] = tensor.detach().clone()
    return merged


def _check_shape(name: str, one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"{name} has shapes {tuple(one.shape)} and {tuple(other.shape)}")


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class ElasticWeights(Regularizer):
    r"""Keeps the shared adapter close to its values after each task, by importance (EWC).

    .. math:: \frac{\lambda}{2} \sum_{k<t} \sum_p F_{k,p} (\theta_p - \theta^*_{k,p})^2, \qquad
        F_{k,p} = \mathbb{E}_x [(\partial \ell(x) / \partial \theta_p)^2]

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
        self._anchors: list[dict[str, Tensor]] = []
        self._importance: list[dict[str, Tensor]] = []

    def before_stage(self, stage: StageView) -> None:
        """Check that the stage trains the adapter with the anchors.

        Raises:
            ValueError: If the stage trains other parameters.
        """
        if self._anchors and self._anchors[-1].keys() != stage.parameters().keys():
            raise ValueError(
                "ElasticWeights needs one adapter that all stages train: give the stream "
                "a shared_expert"
            )

    def forward(self, step: Step) -> Tensor:
        """Return the weighted penalty over all earlier tasks; see :class:`Regularizer`."""
        total = step.zero()
        if not self.coefficient or not self._anchors:
            return total
        current = training_parameters(step.library, step.experts)
        for anchors, importance in zip(self._anchors, self._importance, strict=True):
            total = total + elastic_penalty(
                current, _to_device(anchors, current), _to_device(importance, current)
            )
        return self.coefficient * total

    def after_stage(self, stage: StageView) -> None:
        """Measure the importance of the stage's parameters.

        Raises:
            NonFiniteError: If a gradient is not finite; names parameter and sample.
        """
        if not self.coefficient:
            return
        current = stage.parameters()
        total = {
            name: torch.zeros_like(value, dtype=torch.float32) for name, value in current.items()
        }
        count = 0
        for batch in stage.samples(self.samples, 1):
            loss, _ = stage.step(batch)
            count += 1
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
        if self.online:
            previous = self._importance[0] if self._importance else {}
            self._anchors = [anchors]
            self._importance = [merge_importance(previous, mean, self.decay)]
        else:
            self._anchors.append(anchors)
            self._importance.append(mean)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return anchors and importance of all tasks."""
        kinds = (("anchor", self._anchors), ("importance", self._importance))
        return {
            f"{index}/{kind}/{name}": tensor
            for kind, tables in kinds
            for index, table in enumerate(tables)
            for name, tensor in table.items()
        }

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore saved anchors and importance."""
        tables: dict[str, dict[int, dict[str, Tensor]]] = {"anchor": {}, "importance": {}}
        for key, tensor in tensors.items():
            index, kind, name = key.split("/", 2)
            tables[kind].setdefault(int(index), {})[name] = tensor.clone()
        self._anchors = [tables["anchor"][i] for i in sorted(tables["anchor"])]
        self._importance = [tables["importance"][i] for i in sorted(tables["importance"])]


def _to_device(table: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(like[name].device) for name, tensor in table.items()}
