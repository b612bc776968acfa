"""Wrappers of all undocumented names of Lightning, and of torch's DDP, that this package uses.

Lightning may rename them in any minor release, which is why `pyproject.toml` has an upper bound.
`tests/run/test_run_lightning_private.py` fails with the name that is missing.
"""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy
    from torch import nn


class NoCheckpointArguments:
    """Mixin for a ``LightningCLI`` that reads no arguments from checkpoints."""

    def _parse_ckpt_path(self) -> None:
        """Do not open ``ckpt_path``; the trainer does."""


class _NoSignals(_SignalConnector):
    """Registers no signal handlers."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False

    def teardown(self) -> None:
        pass


def disable_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from handling signals, since it would save the state of one stage only."""
    trainer._signal_connector = _NoSignals(trainer)


def cluster_environment(trainer: Trainer) -> Any:
    """Return the cluster environment: that of SLURM, torchrun or Lightning."""
    return trainer._accelerator_connector.cluster_environment


def starts_processes_for_each_fit(strategy: Strategy) -> bool:
    """Return whether a strategy starts new processes for each fit, like ``ddp_spawn``."""
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def ignore_in_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Leave parameters out of what DDP sends and reduces once it wraps a module.

    Args:
        module: The module that is wrapped next.
        names: Full names of the parameters.
    """
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, names)  # type: ignore[no-untyped-call]


def start_processes(trainer: Trainer) -> list[subprocess.Popen[Any]]:
    """Start the other processes once for all stages, without Lightning's observer.

    The observer kills this process without a message when another one has ended.

    Returns:
        The processes of the ranks 1, 2, ...; none on the ranks that were started.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    devices = launcher.num_processes
    launcher.cluster_environment.validate_settings(devices, launcher.num_nodes)
    if not launcher.cluster_environment.creates_processes_externally:  # this process is rank 0
        launcher._call_children_scripts()
    _set_num_threads_if_needed(num_processes=devices)
    return launcher.procs


def keep_module_in_place(strategy: Strategy) -> None:
    """Let the module stay on its device when a fit or a test ends.

    Lightning moves it to the host after each of them, and back to the device for the next one: all
    of the base model, three times a stage. The optimizers of a fit, which would stay on the host
    until the next one, are dropped.

    Args:
        strategy: Any strategy; its own teardown still runs.
    """
    teardown = strategy.teardown

    def teardown_in_place() -> None:
        module = strategy.lightning_module
        strategy.optimizers, strategy.lr_scheduler_configs = [], []
        if module is None:
            teardown()
            return
        module.__dict__["cpu"] = lambda: module
        try:
            teardown()
        finally:
            del module.__dict__["cpu"]

    strategy.teardown = teardown_in_place  # type: ignore[method-assign]


def signal_processes(trainer: Trainer, signum: int) -> None:
    """Send a signal to the processes that this process started."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signal.Signals(signum))


def fit_progress(trainer: Trainer) -> dict[str, Any]:
    """Return Lightning's counters of epochs, batches and steps, which count over all stages."""
    loop = trainer.fit_loop
    return {
        "epoch": loop.epoch_progress.state_dict(),
        "batch": loop.epoch_loop.batch_progress.state_dict(),
        "optimizer": loop.epoch_loop.automatic_optimization.optim_progress.state_dict(),
        "stepped": loop.epoch_loop._batches_that_stepped,
    }


def restore_fit_progress(trainer: Trainer, progress: dict[str, Any]) -> None:
    """Restore counters that :func:`fit_progress` returned."""
    loop = trainer.fit_loop
    loop.epoch_progress.load_state_dict(progress["epoch"])
    loop.epoch_loop.batch_progress.load_state_dict(progress["batch"])
    loop.epoch_loop.automatic_optimization.optim_progress.load_state_dict(progress["optimizer"])
    loop.epoch_loop._batches_that_stepped = progress["stepped"]


def check_progress(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuse counters of a checkpoint of Lightning that are of another type than those of a fit.

    Raises:
        ValueError: If a counter is no number; names it.
    """
    saved = checkpoint["loops"]["fit_loop"]
    for part, counters in trainer.fit_loop.state_dict().items():
        if part in saved and part != "state_dict":  # that is the state of the loader
            _check_counters(counters, saved[part], part)


def _check_counters(expected: Any, found: Any, name: str) -> None:
    if type(found) is not type(expected):
        raise ValueError(f"the counter {name} is {found!r:.80}")
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key in found:
                _check_counters(value, found[key], f"{name}.{key}")


def set_finished_batches(checkpoint: dict[str, Any], batches: int) -> None:
    """Let a checkpoint of Lightning resume after another number of batches of its epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    shift = batches - progress["ready"]
    for counter in progress:
        progress[counter] += shift
