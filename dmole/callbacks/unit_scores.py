"""The scores of the units before a stage, as its allocator wants them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from dmole.allocation import score_gradients
from dmole.allocation.condition import reciprocal_condition
from dmole.callbacks.proxy_pass import ProxyBatches, proxy_losses
from dmole.callbacks.short_training import delta_scores
from dmole.distributed import broadcast, connected_ranks
from dmole.experts.library import eval_mode
from dmole.models.recomputation import recomputed_in_evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.allocation import Unit
    from dmole.allocation.allocators import Scores
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


def measure_units(
    state: SequenceState, module: ContinualModule, stage: Stage, expert: str
) -> Scores:
    """Return the score of each unit for a new expert, the same on every rank up to rounding.

    Past experts have no part in it.

    Args:
        state: Has data and device; connects the ranks.
        module: Has base model and allocator.
        stage: The first stage that trains the expert.
        expert: Name of the expert, which does not exist yet.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If a loss, a gradient or a weight is not finite.
    """
    units, scored_by = module.units(), module.allocator.scored_by
    if scored_by == "weights":
        return _conditions(module, units)
    if scored_by == "training":
        return delta_scores(state, module, stage, units, expert)
    return _gradients(state, module, stage, units)


def _conditions(module: ContinualModule, units: Sequence[Unit]) -> Scores:
    """Return the mean reciprocal condition number of each unit's weights, those of rank 0."""
    found = {
        unit.name: [reciprocal_condition(module.library.base_weight(p)) for p in unit.linears]
        for unit in units
    }
    return broadcast({name: sum(values) / len(values) for name, values in found.items()})


def _gradients(
    state: SequenceState, module: ContinualModule, stage: Stage, units: Sequence[Unit]
) -> Scores:
    """Return the proxy score of each unit, over the batches of all ranks."""
    allocator, backbone = module.allocator, module.backbone
    module.library.train_only()  # so that the expert of the stage before may leave the device, too
    module.to(state.device)
    parameters = {
        unit.name: [source for path in unit.linears for source in backbone.gradient_sources(path)]
        for unit in units
    }
    ranks = connected_ranks(state.device)
    with eval_mode(backbone), recomputed_in_evaluation(backbone.model):
        scores = score_gradients(
            backbone.model,
            parameters,
            ProxyBatches(state, stage, allocator.proxy_fraction, module.seed),
            functools.partial(proxy_losses, module, state.device, ranks),
            reduction=allocator.reduction,
            combine=allocator.combine,
            passes=allocator.proxy_passes,
            ranks=ranks,
        )
    backbone.release()
    state.interruption.check(state.strategy)
    return scores
