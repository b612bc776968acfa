"""From an allocation to the form that its expert has in each linear of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole.experts.shape import ExpertShape

if TYPE_CHECKING:
    from dmole.allocation import Allocation
    from dmole.routing.routers import Router


def expert_shapes(allocation: Allocation, router: Router, alpha: float) -> dict[str, ExpertShape]:
    """Return the form of an allocation's expert by full path of the linear.

    Args:
        allocation: Layers, ranks and experts side by side.
        router: Mixes experts within layers, or does not.
        alpha: Numerator of the scaling of one low-rank update.

    Raises:
        ValueError: If a layer gets several experts and the router does not mix them.
    """
    mixing, common = router.mixing, allocation.task == router.common
    shapes: dict[str, ExpertShape] = {}
    for entry in allocation.experts:
        if mixing is None and entry.mixture > 1:
            raise ValueError(
                f"the allocator gives {entry.mixture} experts to {entry.layer}, which "
                f"{type(router).__name__} does not mix: use dmole.routing.TokenRouter"
            )
        shape = (
            ExpertShape(entry.rank, alpha)
            if mixing is None
            else mixing.shape(entry.rank, alpha, entry.mixture, common=common)
        )
        shapes |= dict.fromkeys(entry.linears, shape)
    return shapes
