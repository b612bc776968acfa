"""Begins to watch the other processes as soon as they are connected."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts


class PeerWatching(ContinualCallback):
    """Lets a fault of one process end all of them; idle in a single process."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the watch at the first opportunity."""
        sequence, _, _ = parts(trainer, pl_module)
        sequence.watch_peers()
