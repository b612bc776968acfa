"""The batches that are measured beside training, and their losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from dmole.data.labels import answer_tokens
from dmole.module import labels_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dmole.data import Batch
    from dmole.distributed import Ranks
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage


class ProxyBatches:
    """This rank's parts of the batches that are measured around a stage; the same each time.

    A request to end the run ends the batches on all ranks alike.

    Args:
        state: Has the data and connects the ranks.
        stage: The stage.
        fraction: Share of its batches, rounded up.
        seed: Seed of the choice.
    """

    def __init__(self, state: SequenceState, stage: Stage, fraction: float, seed: int) -> None:
        self._state = state
        self._stage = stage
        self._fraction = fraction
        self._seed = seed

    def __iter__(self) -> Iterator[list[Batch]]:
        state, stage = self._state, self._stage
        for tasks in stage.draw.scored(stage.tasks):
            batches = state.data.proxy_batches(stage, tasks, self._fraction, self._seed)
            for batch in batches:
                yield batch
                if state.interruption.agreed(state.strategy):
                    return


def proxy_losses(
    module: ContinualModule,
    device: torch.device,
    ranks: Ranks | None,
    parts: Sequence[Batch],
    experts: Sequence[str] = (),
) -> Tensor | Iterable[Tensor]:
    """Return the loss of a proxy batch; its summands if this rank has several parts of it.

    Each part is weighted by its answer tokens, so the sum is the mean over the tokens of all
    parts on all ranks. Only one part at a time is on the device.

    Args:
        module: The module.
        device: Device of this rank.
        ranks: The ranks; None in a single process.
        parts: This rank's parts of the batch.
        experts: Experts that are active for all samples.
    """
    if ranks is None and len(parts) == 1:
        return module.loss_with(move_data_to_device(parts[0], device), *experts)
    tokens = [int(answer_tokens(labels_of(part))) for part in parts]
    total = sum(tokens)
    if ranks is not None:
        total = int(ranks.sum(torch.tensor(total, device=device)))
    losses = (
        module.loss_with(move_data_to_device(part, device), *experts) * (count / total)
        for part, count in zip(parts, tokens, strict=True)
    )
    return losses if len(parts) > 1 else next(losses, ())
