"""Overlap of the rows of a new expert with those of past experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dmole.regularizers.base import Regularizer, StageView, Step, training_parameters
from dmole.transfer import to_device


def overlap(current: Tensor, past: Tensor) -> Tensor:
    r"""Return the sum of the absolute products of all pairs of a current and a past row.

    .. math:: \sum_{a,b} \left| A_t A_{<t}^\top \right|_{ab}

    The sum grows with both ranks and the number of tasks; :func:`normalized_overlap` does not.

    Args:
        current: ``lora_a`` of the expert in training, shape ``(r, d)``.
        past: Rows of all past ``lora_a`` of the same linear, shape ``(R, d)``; no gradient.

    Returns:
        Scalar, at least float32; zero where there are no past rows.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        O-LoRA, 2023, https://arxiv.org/abs/2310.14152 (authors' code; the paper
        squares the products).

    Example:
        >>> overlap(torch.eye(2, 3), torch.eye(2, 3)), overlap(torch.eye(3)[:1], torch.eye(3)[1:])
        (tensor(2.), tensor(0.))
    """
    return _products(current, past).abs().sum()


def normalized_overlap(current: Tensor, past: Sequence[Tensor]) -> Tensor:
    r"""Return the mean overlap with past experts, independent of ranks, widths and scales.

    .. math:: \frac{1}{t-1} \sum_{i<t} \frac{1}{r} \big\| \hat A_t \hat A_i^\top \big\|_F^2

    with rows :math:`\hat a = a / \|a\|`. It is 0 for experts orthogonal to each other and 1
    where each past expert has orthogonal rows that span those of the current one. No past expert
    with orthogonal rows exceeds 1; one with ``r_i`` parallel rows may reach ``r_i``.

    Args:
        current: ``lora_a`` of the expert in training, shape ``(r, d)``.
        past: ``lora_a`` of each past expert of the same linear, shape ``(r_i, d)``; no gradient.

    Returns:
        Scalar, at least float32; zero where there are no past experts. Zero rows have no overlap.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        Ours, after the squared penalty of O-LoRA, 2023, https://arxiv.org/abs/2310.14152.

    Example:
        >>> normalized_overlap(3 * torch.eye(2, 3), [torch.eye(2, 3), torch.eye(3)[2:]])
        tensor(0.5000)
    """
    if not past:
        return _products(current, current[:0]).sum()
    rows = normalize(_widened(current), dim=-1)  # (r, d)
    products = _products(rows, torch.cat([normalize(_widened(a), dim=-1) for a in past]))
    return products.square().sum() / (len(past) * current.shape[0])


def _products(current: Tensor, past: Tensor) -> Tensor:
    """Return the products of all rows, ``(r, R)``, outside of autocast."""
    if current.ndim != 2 or past.ndim != 2 or current.shape[1] != past.shape[1]:
        raise ValueError(
            f"expected current (r, d) and past (R, d), "
            f"got {tuple(current.shape)} and {tuple(past.shape)}"
        )
    with torch.autocast(current.device.type, enabled=False):
        return _widened(current) @ _widened(past.detach()).T


def _widened(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class Orthogonality(Regularizer):
    r"""Penalizes overlap between the down-projections of new and earlier experts (O-LoRA).

    Args:
        coefficient: Weight of the overlap; 0 disables it.
        form: ``sum`` of absolute products over all linears and earlier experts, as published, or
            ``normalized``: the mean overlap of unit rows over linears and pairs of experts, which
            does not grow with rank, width, linears or tasks.
        l2: Weight of the sum of Frobenius norms of the new expert's matrices.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        O-LoRA, 2023, https://arxiv.org/abs/2310.14152 (authors' code: absolute values, ``A`` only);
        the normalized form is ours.
    """

    mean_over = "steps"

    def __init__(
        self,
        coefficient: float = 0.5,
        form: Literal["sum", "normalized"] = "sum",
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        if coefficient < 0 or l2 < 0:
            raise ValueError(f"coefficients must not be negative, got {coefficient} and {l2}")
        if form not in ("sum", "normalized"):
            raise ValueError(f"form must be 'sum' or 'normalized', got {form!r}")
        self.coefficient = coefficient
        self.form = form
        self.l2 = l2
        self._past: dict[str, list[Tensor]] | None = None  # by linear, on the device

    def before_stage(self, stage: StageView) -> None:
        """Read the earlier experts again in the first step of the stage."""
        self._past = None

    def after_stage(self, stage: StageView) -> None:
        """Remove the earlier experts from the device."""
        self._past = None

    def forward(self, step: Step) -> Tensor:
        """Return the weighted overlap; see :class:`Regularizer`."""
        total = step.zero()
        pairs = self._pairs(step) if self.coefficient else []
        overlaps = [
            normalized_overlap(new, old)
            if self.form == "normalized"
            else overlap(new, torch.cat(list(old)))
            for new, old in pairs
        ]
        if overlaps:
            stacked = torch.stack(overlaps)
            reduced = stacked.mean() if self.form == "normalized" else stacked.sum()
            total = total + self.coefficient * reduced
        if self.l2:
            current = training_parameters(step.library, step.experts).values()
            total = total + self.l2 * torch.stack([p.float().norm() for p in current]).sum()
        return total

    def _pairs(self, step: Step) -> list[tuple[Tensor, list[Tensor]]]:
        """Return the new and the earlier down-projections of each linear that has both."""
        if self._past is None:
            self._past = _earlier(step)
        past = self._past
        return [
            (expert.lora_a, past[path])
            for name in step.experts
            for path, expert in step.library.experts(name)
            if expert.rank and path in past
        ]


def _earlier(step: Step) -> dict[str, list[Tensor]]:
    """Return the down-projections of earlier experts, by linear, on the device of the batch."""
    past: dict[str, list[Tensor]] = {}
    own = {*step.experts, *step.continued}
    for name in step.library.names:
        for key, tensor in step.library.tensors(name).items() if name not in own else ():
            path, _, part = key.rpartition(".")
            if part == "lora_a":
                past.setdefault(path, []).append(to_device(tensor, step.labels.device))
    return past
