"""How far a training has moved each unit: the norm of its update relative to the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.allocation.plan import Unit

if TYPE_CHECKING:
    from dmole.experts.library import ExpertLibrary


def product_norm(down: Tensor, up: Tensor) -> Tensor:
    r"""Return the Frobenius norm of the product of two factors, without computing the product.

    .. math:: \|BA\|_F^2 = \operatorname{tr}\big((B^\top B)(A A^\top)\big)

    Args:
        down: The factor A, ``(r, in)``.
        up: The factor B, ``(out, r)``.

    Returns:
        A scalar, float32.

    Example:
        >>> product_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])).item()
        10.0
    """
    down, up = down.float(), up.float()
    squared = ((up.t() @ up) * (down @ down.t())).sum()
    return squared.clamp(min=0.0).sqrt()  # rounding may leave a small negative number


@torch.no_grad()
def relative_deltas(library: ExpertLibrary, expert: str, units: Sequence[Unit]) -> dict[str, float]:
    r"""Return the relative size of an expert's update in each unit that holds it.

    .. math:: \delta^l = \sum_{W \in l} \frac{\|s\,BA\|_F}{\|W\|_F}

    All ranks must call it if the base model is split over them. A linear whose weight is zero
    adds nothing.

    Args:
        library: The experts and the base model.
        expert: An expert of plain low-rank updates, with scaling s.
        units: Units; those without the expert are left out of the result.

    Raises:
        ValueError: If an update is not finite (names the unit), or is no plain product.
    """
    updates = dict(library.experts(expert))
    found: dict[str, float] = {}
    for unit in units:
        inside = [path for path in unit.linears if path in updates]
        if not inside:
            continue
        total = 0.0
        for path in inside:
            update = updates[path]
            if not update.shape.plain:
                raise ValueError(f"expert {expert!r} mixes several updates in linear {path}")
            size = update.scaling * float(product_norm(update.lora_a, update.up))
            weight = library.base_norm(path)
            total += size / weight if weight else 0.0
        if not math.isfinite(total):
            raise ValueError(f"expert {expert!r}: the update of unit {unit.name} is not finite")
        found[unit.name] = total
    return found
