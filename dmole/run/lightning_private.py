"""Every name that Lightning does not document and this package needs, behind a small function.

Lightning may rename them in any minor release, which is why `pyproject.toml` has an upper bound.
`tests/run/test_run_lightning_private.py` names the one that is gone.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy


class LeavesCheckpointPath:
    """Mixin of ``LightningCLI`` whose checkpoints hold no arguments for the command line."""

    def _parse_ckpt_path(self) -> None:
        """Leave ``ckpt_path`` to the trainer."""


class _NoSignals(_SignalConnector):
    """Handles no signal."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False

    def teardown(self) -> None:
        pass


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from handling signals: it would save what it knows of one stage only."""
    trainer._signal_connector = _NoSignals(trainer)


def cluster_environment(trainer: Trainer) -> Any:
    """Return Lightning's cluster environment: SLURM's, torchrun's, or its own."""
    return trainer._accelerator_connector.cluster_environment


def starts_processes_for_each_fit(strategy: Strategy) -> bool:
    """Return whether the processes of a strategy end with each fit, as with ``ddp_spawn``."""
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def start_processes(trainer: Trainer) -> None:
    """Start the other processes of a strategy that starts them itself, once for all stages."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.launch(lambda: None, trainer=trainer)


def signal_processes(trainer: Trainer, signum: int) -> None:
    """Send a signal to the processes that this one started."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signal.Signals(signum))


def fit_progress(trainer: Trainer) -> dict[str, Any]:
    """Return Lightning's counters of epochs, batches and steps, which rise over all stages."""
    loop = trainer.fit_loop
    return {
        "epoch": loop.epoch_progress.state_dict(),
        "batch": loop.epoch_loop.batch_progress.state_dict(),
        "optimizer": loop.epoch_loop.automatic_optimization.optim_progress.state_dict(),
        "stepped": loop.epoch_loop._batches_that_stepped,
    }


def restore_fit_progress(trainer: Trainer, progress: dict[str, Any]) -> None:
    """Set Lightning's counters to what :func:`fit_progress` returned."""
    loop = trainer.fit_loop
    loop.epoch_progress.load_state_dict(progress["epoch"])
    loop.epoch_loop.batch_progress.load_state_dict(progress["batch"])
    loop.epoch_loop.automatic_optimization.optim_progress.load_state_dict(progress["optimizer"])
    loop.epoch_loop._batches_that_stepped = progress["stepped"]
