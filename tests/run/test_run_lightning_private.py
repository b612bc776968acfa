"""Names of Lightning that it does not document: each test names the one that is gone."""

from __future__ import annotations

import ast
import signal
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.optim import SGD

from dmole.run import lightning_private

PACKAGE = Path(lightning_private.__file__).resolve().parents[1]

PRIVATE = [
    ("lightning.pytorch.strategies.launchers", "_MultiProcessingLauncher"),
    ("lightning.pytorch.strategies.launchers", "_SubprocessScriptLauncher._call_children_scripts"),
    ("lightning.fabric.utilities.distributed", "_set_num_threads_if_needed"),
    ("lightning.pytorch.strategies.launchers", "_SubprocessScriptLauncher.kill"),
    ("lightning.pytorch.trainer.connectors.signal_connector", "_SignalConnector"),
    ("lightning.pytorch.trainer.connectors.signal_connector",
     "_SignalConnector.register_signal_handlers"),
    ("lightning.pytorch.trainer.connectors.signal_connector", "_SignalConnector.teardown"),
    ("lightning.pytorch.cli", "LightningCLI._parse_ckpt_path"),
    ("torch.nn.parallel",
     "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model"),
]  # fmt: skip


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


@pytest.mark.parametrize(("module", "name"), PRIVATE)
def test_lightning_still_has(module: str, name: str) -> None:
    found: object = import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{module}.{name} is gone"
        found = getattr(found, part)


@pytest.mark.parametrize(
    "path",
    [
        "_signal_connector",
        "_accelerator_connector.cluster_environment",
        "strategy.launcher",
        "fit_loop.epoch_progress.state_dict",
        "fit_loop.epoch_loop._batches_that_stepped",
        "fit_loop.epoch_loop.batch_progress.state_dict",
        "fit_loop.epoch_loop.automatic_optimization.optim_progress.state_dict",
    ],
)
def test_a_trainer_still_has(trainer: Trainer, path: str) -> None:
    found: object = trainer
    for part in path.split("."):
        assert hasattr(found, part), f"trainer.{path} is gone"
        found = getattr(found, part)


def test_signal_handlers_are_left_alone(trainer: Trainer) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    lightning_private.disable_signal_handlers(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert trainer.received_sigterm is False
    trainer._signal_connector.teardown()


def test_progress_of_one_trainer_is_taken_over_by_another(trainer: Trainer) -> None:
    progress = lightning_private.fit_progress(trainer)
    progress["stepped"] = 7
    progress["epoch"]["current"]["completed"] = 3
    other = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    lightning_private.restore_fit_progress(other, progress)
    assert lightning_private.fit_progress(other) == progress
    assert other.fit_loop.epoch_progress.current.completed == 3


def test_only_strategies_that_fork_for_each_fit_are_told_apart() -> None:
    lasting = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    forked = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False)
    assert not lightning_private.starts_processes_for_each_fit(lasting.strategy)
    assert lightning_private.starts_processes_for_each_fit(forked.strategy)


def imports(path: Path) -> set[tuple[str, str]]:
    """Return all that a file imports, also for types alone, as pairs of module and name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    return found


@pytest.mark.parametrize("folder", ["callbacks", "run"])
def test_no_callback_and_no_part_of_a_run_imports_the_trainer(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        for module, name in imports(path):
            assert module != "dmole.trainer", path
            assert name != "ContinualTrainer", path


def test_private_names_of_lightning_are_used_in_one_file_alone() -> None:
    here = Path(lightning_private.__file__).resolve()
    attributes = (
        *("_signal_connector", "_accelerator_connector", "_batches_that_stepped"),
        "_parse_ckpt_path",
        "_set_params_and_buffers_to_ignore_for_model",
    )
    for path in PACKAGE.rglob("*.py"):
        if path == here:
            continue
        names = {name for module, name in imports(path) if module.startswith("lightning")}
        assert not [name for name in names if name.startswith("_")], path
        assert not [name for name in attributes if name in path.read_text("utf-8")], path


class Moved(LightningModule):
    """Counts how often it is moved to the host."""

    moves = 0

    def cpu(self) -> Moved:
        self.moves += 1
        return self


@pytest.mark.parametrize("distributed", [False, True])
def test_the_end_of_a_fit_leaves_the_module_in_its_place(distributed: bool) -> None:
    accelerator, module = CPUAccelerator(), Moved()
    strategy: Strategy = SingleDeviceStrategy(accelerator=accelerator)
    if distributed:
        strategy = DDPStrategy(accelerator, cluster_environment=LightningEnvironment())
    lightning_private.keep_module_in_place(strategy)
    strategy.teardown()  # before a module is connected
    strategy.connect(module)
    strategy.optimizers = [SGD([nn.Parameter(torch.zeros(2))])]
    strategy.teardown()
    assert module.moves == 0
    assert strategy.optimizers == strategy.lr_scheduler_configs == []
    assert module.cpu().moves == 1  # as before, for whoever asks for it
