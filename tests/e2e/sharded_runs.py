"""Small runs of a model family on several ranks, and what they are compared by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import make_backbone
from lightning.pytorch import Trainer
from no_figures import NoFigures
from PIL import Image
from two_ranks import on_ranks

from dmole.allocation import SensitivityAllocator
from dmole.callbacks import ContinualCallback
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import Backbone, PretrainedBackbone
from dmole.module import ContinualModule
from dmole.regularizers import Regularizer
from dmole.routing import AutoencoderRouter
from dmole.run.signals import Interrupted
from dmole.run.state import SequenceState, sequence_of
from dmole.streams import SequentialStream, Stream
from dmole.trainer import ContinualTrainer

PHASES = ("allocate", "step", "train", "router", "evaluate")


def write_tasks(
    folder: Path,
    train: Sequence[int] = (7, 9),
    test: Sequence[int] = (5, 1),
    *,
    texts: bool = True,
) -> None:
    """Write two tasks of which ranks get unequal shares.

    Every third sample has no image if there may be texts alone.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(("color", "shape")):
        for split, size in (("train", train[number]), ("test", test[number])):
            items = []
            for index in range(size):
                answer = ("red", "a blue one", "two")[(index + number) % 3]
                question = f"what {name} is it ?" + " and why" * (index % 3)
                item: dict[str, Any] = {"id": f"{split}{index}"}
                if index % 3 or not texts:
                    file = f"{name}_{split}_{index}.png"
                    pixels = rng.integers(0, 256, (24 + 8 * (index % 2), 32, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / file)
                    item["image"] = file
                turns = [("human", question), ("gpt", answer)]
                item["conversations"] = [{"from": who, "value": text} for who, text in turns]
                items.append(item)
            (folder / f"{name}_{split}.json").write_text(json.dumps(items))


def tasks_in(folder: Path) -> list[Task]:
    return [
        Task(
            name,
            train=str(folder / f"{name}_train.json"),
            test=str(folder / f"{name}_test.json"),
            max_new_tokens=3,
        )
        for name in ("color", "shape")
    ]


class Resident(ContinualCallback):
    """Notes the bytes of the base model that this process holds after each phase."""

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}

    def note(self, phase: str, module: Any) -> None:
        weights: dict[int, torch.Tensor] = {}
        for name, parameter in module.backbone.model.named_parameters():
            if ".experts." not in name:
                local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                weights[id(parameter)] = local
        size = sum(weight.numel() * weight.element_size() for weight in weights.values())
        self.held.setdefault(phase, []).append(size)

    def on_stage_start(self, state: SequenceState, module: ContinualModule) -> None:
        self.note("allocate", module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.note("step", pl_module)

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        self.note("train", module)

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        self.note("router", module)

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        self.note("evaluate", module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if sequence_of(trainer).stage.index:
            self.note("answer", pl_module)


@dataclass(frozen=True)
class Fit:
    """A run that can be made on any number of ranks."""

    data: Path
    root: Path
    family: str = "tiny"
    strategy: Any = "ddp"
    checkpoint: Path | None = None
    allocator: Callable[[], Any] = SensitivityAllocator
    router: Callable[[], Any] = AutoencoderRouter
    regularizers: Callable[[], list[Regularizer]] = list
    callbacks: Sequence[Any] = ()
    model: dict[str, Any] = field(default_factory=dict)
    stream: Callable[[], Stream] = SequentialStream
    tied: bool = False
    batch_size: int = 2
    ends: bool = False

    def backbone(self) -> Backbone:
        if self.family == "tiny":
            return PretrainedBackbone("tiny")
        backbone = make_backbone(self.family)
        if self.tied:
            model: Any = backbone.model
            model.get_output_embeddings().weight = model.get_input_embeddings().weight
        return backbone

    def __call__(self, world: int) -> Any:
        """Learn the sequence as one of the ranks."""
        module = ContinualModule(
            self.backbone(),
            self.allocator(),
            self.router(),
            **{
                "optimizer": partial(torch.optim.AdamW, lr=5e-3),
                "dropout": 0.0,
                "regularizers": self.regularizers(),
                **self.model,
            },
        )
        data = ContinualDataModule(
            tasks_in(self.data), batch_size=self.batch_size, eval_batch_size=2
        )
        strategy = self.strategy() if callable(self.strategy) else self.strategy
        resident = Resident()
        trainer = ContinualTrainer(
            default_root_dir=str(self.root),
            callbacks=[NoFigures(), resident, *self.callbacks],
            accelerator="cpu",
            devices=world,
            strategy=strategy,
            stream=self.stream(),
            enable_progress_bar=False,
            report=False,
        )
        whole = module.backbone.parameter_count()
        try:
            trainer.fit(module, data, ckpt_path=self.checkpoint and str(self.checkpoint))
        except Interrupted:
            assert self.ends
            return "ended"
        return {
            "run": trainer.run_dir,
            "held": resident.held,
            "bound": resident_bound(self.backbone(), world),
            "whole": 4 * whole,
            "experts": {key: value.numpy() for key, value in module.state_dict().items()},
        }

    def on(self, world: int) -> list[Any]:
        """Return the results of all ranks."""
        return on_ranks(world, lambda: self(world))


def resident_bound(backbone: Backbone, ranks: int) -> int:
    """Return the bytes of a base model on the rank that holds most: one row may be left over."""
    model: Any = backbone.model
    parts = [model.get_submodule(b.path) for b in backbone.blocks if b.modality != "projector"]
    parts += [model.get_input_embeddings(), model.get_output_embeddings()]
    split = {id(p) for part in parts for p in part.parameters()}
    named = list(model.named_parameters(remove_duplicate=False))
    own = {id(p): p for _, p in named if id(p) not in split}
    total = sum(p.numel() * p.element_size() for p in own.values())
    seen = [p for part in parts for p in part.parameters()]  # a tied weight is split twice
    return total + sum(
        math.ceil(p.shape[0] / ranks) * p[0].numel() * p.element_size() for p in seen
    )
