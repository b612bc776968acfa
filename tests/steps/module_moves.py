"""Learns one task on a device in Python; prints moves of the model and optimizers left, as JSON."""

from __future__ import annotations

import gc
import json
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from dmole import (
    ContinualDataModule,
    ContinualModule,
    ContinualTrainer,
    PretrainedBackbone,
    Task,
    UniformAllocator,
)
from dmole.callbacks import ContinualCallback
from dmole.routing import AutoencoderRouter


class OptimizersLeft(ContinualCallback):
    """Notes how many optimizers of the training of a stage are alive after it."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Any]] = []
        self.left: list[int] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.made += [weakref.ref(optimizer) for optimizer in trainer.optimizers]

    def on_stage_trained(self, state: Any, module: Any) -> None:
        gc.collect()
        self.left.append(sum(optimizer() is not None for optimizer in self.made))


def main(folder: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    module = ContinualModule(PretrainedBackbone("tiny"), UniformAllocator(), AutoencoderRouter())
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import fake_accelerator as fake  # after the model is built, since transformers would use it

    SingleDeviceStrategy.root_device = property(lambda self: fake.DEVICE, lambda self, value: None)
    CPUAccelerator.setup_device = lambda self, device: None
    moves: list[str] = []
    apply = torch.nn.Module._apply

    def counted(part: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if part is not module:
            return apply(part, *args, **kwargs)
        before = next(module.backbone.model.parameters()).device.type
        apply(part, *args, **kwargs)
        after = next(module.backbone.model.parameters()).device.type
        moves.extend([f"{before} to {after}"] if before != after else [])
        return part

    torch.nn.Module._apply = counted
    address, left = "synthetic://count/{}?size=4", OptimizersLeft()
    task = Task("count", address.format("train"), address.format("test"), max_new_tokens=1)
    trainer = ContinualTrainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=[left],
        report=False,
        case_images=0,
        enable_progress_bar=False,
        inference_mode=False,
    )
    with fake.OnDevice():
        trainer.fit(module, ContinualDataModule([task], batch_size=4))
    print(json.dumps({"moves": moves, "optimizers": [len(left.made), left.left]}))


if __name__ == "__main__":
    main(sys.argv[1])
