"""Reduction of the intruder dimensions of an expert after its stage."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from dmole.distributed import broadcast
from dmole.regularizers.base import Regularizer, StageView, Step

log = logging.getLogger("dmole")


def find_intruders(weight: Tensor, update: Tensor, top_k: int, threshold: float) -> list[int]:
    """Return the intruder dimensions of an update, by rank of their singular value.

    A left singular vector of ``weight + update`` is an intruder if its cosine to no left singular
    vector of the weight reaches the threshold, whatever the sign.

    Args:
        weight: Weight before the update, ``(out, in)``.
        update: The update, ``(out, in)``.
        top_k: Singular vectors that are compared, largest singular values first.
        threshold: Smallest cosine of a vector that is no intruder.

    Example:
        >>> weight, update = torch.diag(torch.tensor([2.0, 1.0, 0.0])), torch.zeros(3, 3)
        >>> update[2, 0] = 5.0
        >>> find_intruders(weight[:, :2], update[:, :2], 2, 0.9)
        [0]
    """
    before, _, _ = torch.linalg.svd(weight, full_matrices=False)
    after, _, _ = torch.linalg.svd(weight + update, full_matrices=False)
    cosines = (after[:, :top_k].t() @ before).abs().amax(dim=1)  # (top_k,)
    return [int(index) for index in torch.nonzero(cosines < threshold).flatten()]


def reduced_update(
    weight: Tensor,
    update: Tensor,
    intruders: list[int],
    factor: float,
    *,
    rank: int,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Return an update with smaller intruder dimensions as two factors.

    .. math:: \Delta' = \Delta - (1 - \lambda) \sum_{i} \sigma_i u_i v_i^\top

    with the singular triples of :math:`W + \Delta` of the intruders, then truncated to the rank.

    Args:
        weight: Weight before the update, ``(out, in)``.
        update: The update, ``(out, in)``.
        intruders: Indices of the intruders, see :func:`find_intruders`.
        factor: The :math:`\lambda`: share of each intruder that stays.
        rank: Rank of the factors.
        scaling: Factor on their product.

    Returns:
        ``(rank, in)`` and ``(out, rank)``; their product, second times first, times the scaling is
        the update. Both have the square root of the singular values.
    """
    left, values, right = torch.linalg.svd(weight + update, full_matrices=False)
    part = (left[:, intruders] * values[intruders]) @ right[intruders]
    left, values, right = torch.linalg.svd(update - (1 - factor) * part, full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


class IntruderReduction(Regularizer):
    r"""Reduces the intruder dimensions of the experts of a stage once it is trained; adds no loss.

    An intruder dimension is a leading singular vector of the updated weight that is similar to none
    of the weight before the update. The reduced update has the rank of the expert. An expert on a
    linear without intruders is not changed.

    Cost: three or four singular value decompositions of each weight with an expert, once a stage.

    Args:
        top_k: Leading singular vectors that are compared in each linear.
        threshold: Smallest cosine of a vector that is no intruder, in ``[0, 1]``; 0 finds none.
        factor: Share of each intruder that stays, in ``[0, 1]``; 1 keeps it whole.
        merged: Whether the weight before the update includes all earlier experts, as for methods
            that merge them; else it is that of the base model.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        LoRA vs Full Fine-tuning: An Illusion of Equivalence, 2024,
        https://arxiv.org/abs/2410.21228, after ``reduce_intruder_dimension`` of PEFT.
    """

    def __init__(
        self,
        top_k: int = 10,
        threshold: float = 0.5,
        factor: float = 0.75,
        merged: bool = False,
    ) -> None:
        super().__init__()
        if top_k < 1 or not 0 <= threshold <= 1 or not 0 <= factor <= 1:
            raise ValueError(
                f"top_k must be at least 1, threshold and factor in [0, 1], got {top_k}, "
                f"{threshold} and {factor}"
            )
        self.top_k = top_k
        self.threshold = threshold
        self.factor = factor
        self.merged = merged

    def before_stage(self, stage: StageView) -> None:
        """Check that the experts of the stage are plain and the weights of the base model whole.

        Raises:
            ValueError: If an expert is a soft prompt or mixes several updates in a linear, or a
                weight is split over the ranks.
        """
        for name in stage.experts:
            if stage.library.has_prompt(name):
                raise ValueError(
                    f"IntruderReduction needs plain experts, expert {name!r} is a soft prompt"
                )
            for index, (path, expert) in enumerate(stage.library.experts(name)):
                if not index:  # all weights are split, or none
                    stage.library.base_weight(path)
                if not expert.shape.plain:
                    raise ValueError(
                        f"IntruderReduction needs plain experts, expert {name!r} mixes several in "
                        f"linear {path}"
                    )

    def forward(self, step: Step) -> Tensor:
        """Return zero: the experts are changed after the stage alone."""
        return step.zero()

    @torch.no_grad()
    def after_stage(self, stage: StageView) -> None:
        """Reduce the intruder dimensions of the stage's experts; all ranks take rank 0's values."""
        if not self.threshold:
            return
        for name in stage.experts:
            found = 0
            for path, expert in stage.library.experts(name):
                weight = self._before(stage, name, path)
                update = expert.scaling * (expert.up.float() @ expert.lora_a.float())
                result = None
                if intruders := find_intruders(weight, update, self.top_k, self.threshold):
                    result = reduced_update(
                        weight,
                        update,
                        intruders,
                        self.factor,
                        rank=expert.rank,
                        scaling=expert.scaling,
                    )
                count, factors = broadcast((len(intruders), _on_host(result)))
                found += count
                if factors is not None:
                    rank = len(factors[0])  # smaller than the expert's in a linear of few features
                    expert.lora_a.zero_()[:rank] = factors[0].to(expert.lora_a)
                    up = expert.get_parameter("lora_b")
                    up.zero_()[:, :rank] = factors[1].to(up)
            log.info("expert %s: %d intruder dimensions reduced", name, found)

    def _before(self, stage: StageView, name: str, path: str) -> Tensor:
        """Return the weight of a linear before the update of an expert."""
        weight = stage.library.base_weight(path)
        for other in stage.library.names if self.merged else ():
            tensors = stage.library.tensors(other)
            if other != name and f"{path}.lora_a" in tensors:
                expert = dict(stage.library.experts(other))[path]
                up, down = (tensors[f"{path}.{part}"].to(weight) for part in ("lora_b", "lora_a"))
                weight = weight + expert.scaling * (up @ down)
        return weight


def _on_host(result: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if result is None else (result[0].cpu(), result[1].cpu())
