"""Measures of test samples under each expert, computed once for each fit by one of the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.callbacks.embedding import embed_samples
from dmole.distributed import gather_objects
from dmole.routing.query import Measures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmole.module import ContinualModule
    from dmole.routing.query import Meter
    from dmole.run.state import SequenceState

BLOCK = 1024
"""Samples that are measured at once. Blocks do not depend on the number of ranks."""


class MeasuredSamples:
    """Losses of the test samples under each expert, four bytes each.

    A loss depends on the sample and on the fit of the expert alone. A stage fits one expert, so
    its evaluation computes one new loss for each sample.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], tuple[object, Tensor]] = {}

    def of(
        self, state: SequenceState, module: ContinualModule, meter: Meter, task: str
    ) -> Measures:
        """Return the measures of a task's test samples, equal on every rank. All must call it.

        Args:
            state: Has samples and device; connects the ranks.
            module: Has the embeddings.
            meter: Of the router, with the experts that are evaluated.
            task: Name of the task.

        Raises:
            Interrupted: If a signal requested the end of the run.
        """
        new = [name for name in meter.experts if not self._knows(task, name, meter)]
        ranks = None
        if new or meter.has_ranks:
            table = _measure(state, module, meter, task, new)  # (N, new + C) or (N, new)
            for name, column in zip(new, table.T, strict=False):
                self._columns[task, name] = meter.version(name), column.clone()
            ranks = table[:, len(new) :] if meter.has_ranks else None
        columns = [self._columns[task, name][1] for name in meter.experts]
        return Measures(torch.stack(columns, dim=1), ranks)

    def _knows(self, task: str, expert: str, meter: Meter) -> bool:
        version, _ = self._columns.get((task, expert), (None, None))
        return version is meter.version(expert)


def _measure(
    state: SequenceState, module: ContinualModule, meter: Meter, task: str, new: Sequence[str]
) -> Tensor:
    """Return losses under the new experts, then ranks if there are any, ``(N, ...)``.

    The ranks share the blocks; each reads the embeddings of its own ones only.
    """
    samples = state.data.test_samples(task)
    keys = [f"{task}/test/{sample.id}" for sample in samples]
    world, device = state.world_size, measuring_device(state.device)
    starts = range(state.trainer.global_rank * BLOCK, len(keys), world * BLOCK)

    def measured(rows: Tensor) -> Tensor:
        losses = [meter.losses(rows, new, device)] if new else []
        ranks = meter.ranks(rows)
        return torch.cat(losses if ranks is None else [*losses, ranks], dim=1)

    def known(start: int) -> Tensor | None:
        names = keys[start : start + BLOCK]
        rows = module.embedder.cache.found(names)
        return torch.stack([rows[name] for name in names]) if len(rows) == len(names) else None

    parts = _parts(state, starts, known, measured)
    if any(gather_objects(len(parts) < len(starts))):
        rows = embed_samples(state, module, [(sample, task) for sample in samples], "test")
        parts = _parts(state, starts, lambda start: rows[start : start + BLOCK], measured)
    gathered = gather_objects(parts)
    state.interruption.check(state.strategy)
    blocks = range(-(-len(keys) // BLOCK))
    return torch.cat([gathered[block % world][block // world] for block in blocks])


def _parts(
    state: SequenceState,
    starts: Sequence[int],
    read: Callable[[int], Tensor | None],
    measured: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Return what is measured of blocks, up to the first one whose rows are not known."""
    parts: list[Tensor] = []
    for start in state.interruption.until_requested(starts):
        if (rows := read(start)) is None:
            break
        parts.append(measured(rows))
    return parts


def measuring_device(device: torch.device) -> torch.device:
    """Return where losses are computed: on the device of this rank if it has float64."""
    return torch.device("cpu") if device.type == "mps" else device
