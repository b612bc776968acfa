"""Small runs of the shipped methods, built from their YAML by the classes of the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from no_figures import NoFigures
from torch import Tensor

from dmole.callbacks import ExpertInspector
from dmole.cli.config_files import read_settings
from dmole.cli.lightning import ContinualCLI
from dmole.datamodule import ContinualDataModule
from dmole.module import ContinualModule
from dmole.trainer import ContinualTrainer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))
TASKS = ("paint", "count")
STEPS = 2
"""Optimizer steps of a task: 8 samples in batches of 4."""


def settings_of(method: str) -> dict[str, Any]:
    return read_settings(CONFIGS / "methods" / f"{method}.yaml")


def changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others at some places, such as ``model.regularizers.0.init_args.x``."""
    result = copy.deepcopy(settings)
    for place, value in changes.items():
        *way, last = place.split(".")
        node: Any = result
        for key in way:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = value
    return result


def smallness(tasks: Sequence[str]) -> dict[str, Any]:
    """Return what makes a run small."""
    return {
        "trainer": {"enable_progress_bar": False, "checkpoint_every_n_steps": 0},
        "model": {"dropout": 0.1},  # so that random draws matter
        "data": {
            "batch_size": 8 // STEPS,
            "eval_batch_size": 8,
            "tasks": [_task(name) for name in tasks],
        },
    }


def _task(name: str) -> dict[str, Any]:
    """Return a synthetic task; the name of a version, such as ``paint-v2``, is an update."""
    kind, _, version = name.partition("-v")
    address = f"synthetic://{kind}/{{}}?size="
    task = {"name": name, "train": f"{address.format('train')}8", "max_new_tokens": 2}
    if version:
        return task | {"train": f"{task['train']}&seed={version}", "update": True}
    return task | {"test": f"{address.format('test')}2"}


@dataclass
class Built:
    """The three objects of a run."""

    trainer: ContinualTrainer
    module: ContinualModule
    data: ContinualDataModule

    def fit(self, ckpt_path: str | None = None) -> Path:
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)
        return self.trainer.run_dir

    def train(self) -> dict[str, Tensor]:
        """Go through all stages without asking the test samples, and return the experts."""
        self.trainer._evaluate = lambda module: None  # type: ignore[method-assign]
        self.fit()
        return self.experts()

    def experts(self) -> dict[str, Tensor]:
        """Return the tensors of all experts, without those of regularizers."""
        state = self.module.state_dict()
        return {key: value.clone() for key, value in state.items() if not key.startswith("@")}


class _Parser(ContinualCLI):
    """Parses many configs; making the parser takes longer than a run."""

    def instantiate_classes(self) -> None:
        if hasattr(self, "requested"):
            super().instantiate_classes()


class Builder:
    """Builds runs from quickstart, a method and what makes them small, in this order.

    A method that sets its dropout keeps it.
    """

    def __init__(self) -> None:
        self._cli = _Parser(["--config", str(CONFIGS / "quickstart.yaml")], run=False)
        self._cli.requested = True
        self._parsed: dict[str, Any] = {}

    def parse(
        self, method: str, changes: Mapping[str, Any] | None = None, tasks: Sequence[str] = TASKS
    ) -> Any:
        """Return the config of a method, parsed once.

        Args:
            method: Name of a shipped method.
            changes: Settings to replace in it, by place.
            tasks: Synthetic tasks.
        """
        key = repr((method, changes, tasks))
        if key not in self._parsed:
            own, small = changed(settings_of(method), changes or {}), smallness(tasks)
            if "dropout" in own.get("model", {}):
                del small["model"]["dropout"]
            file = str(CONFIGS / "methods" / f"{method}.yaml")
            middle = yaml.safe_dump(own) if changes else file
            texts = [str(CONFIGS / "quickstart.yaml"), middle, yaml.safe_dump(small)]
            words = [word for text in texts for word in ("--config", text)]
            self._parsed[key] = self._cli.parser.parse_args(words)
        return self._parsed[key].clone()

    def place(self, trainer: Any, ranks: int) -> None:
        """Choose the devices in the settings of a trainer."""
        if ranks > 1:
            trainer.devices, trainer.strategy = ranks, "ddp"

    def build(
        self,
        root: Path,
        base_model: Path | str,
        method: str,
        changes: Mapping[str, Any] | None = None,
        *,
        tasks: Sequence[str] = TASKS,
        ranks: int = 1,
        save_steps: bool = False,
    ) -> Built:
        """Build a run.

        Args:
            root: Folder of runs.
            base_model: Folder of the base model, or ``tiny``.
            method: Name of a shipped method.
            changes: Settings to replace in it, by place.
            tasks: Synthetic tasks.
            ranks: Processes, whose batches together are as large as one's.
            save_steps: Whether a checkpoint is made after every step.
        """
        cli = self._cli
        cli.config = config = self.parse(method, changes, tasks)
        config.trainer.default_root_dir = str(root)
        config.model.backbone.init_args.name_or_path = str(base_model)
        config.data.batch_size //= ranks
        self.place(config.trainer, ranks)
        config.trainer.checkpoint_every_n_steps = int(save_steps)
        cli.save_config_callback = None  # takes a third of a short run's time
        cli.instantiate_classes()
        silence(cli.trainer)
        return Built(cli.trainer, cli.model, cli.datamodule)


def silence(trainer: ContinualTrainer) -> None:
    """Draw no figures."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if type(callback) is ExpertInspector:
            callbacks[place] = NoFigures()


def layers_of(module: ContinualModule) -> dict[str, dict[str, tuple[int, int]]]:
    """Return inputs and outputs of the linears of every vision and language block."""
    sizes = module.backbone.linear_shapes()
    layers = [block for block in module.backbone.blocks if block.modality != "projector"]
    return {layer.name: {path: sizes[path] for path in layer.linears} for layer in layers}


def _learned(key: str) -> bool:
    return "lora_b" in key or key.endswith(".tokens")


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Make sure that tensors are the same to the bit, and that they are of something learned."""
    assert ours.keys() == theirs.keys()
    assert ours
    assert any(bool(tensor.any()) for key, tensor in ours.items() if _learned(key))
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
