"""The score of a task with an expert in given blocks, by training it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dmole.allocation import Allocation, AllocationEntry, SensitivityAllocator, Unit
from dmole.allocation.delta import relative_deltas
from dmole.curriculum.optimization import learning_rate_factor
from dmole.data import Batch, Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import OracleRouter
from dmole.run.context import StageContext
from dmole.storage.seeds import derive_seed
from experiments.block_scores import Scores, measured_scores
from experiments.routing_rules import Study


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained.

    Args:
        base_model: Name or folder of the base model.
        rank: Rank of the expert.
        batch_size: Samples of a step.
        lr: Largest learning rate of AdamW, with warm-up and cosine.
        warmup: Share of the steps of the warm-up.
        clip: Largest norm of the gradients.
        proxy_batches: Batches that the scores are measured on.
        trial_steps: Steps of a trial, see `Lesson.trial_scores`.
        delta_steps: Other numbers of steps of `Lesson.delta_scores`.
    """

    base_model: str
    rank: int = 8
    batch_size: int = 8
    lr: float = 3e-3
    warmup: float = 0.05
    clip: float = 1.0
    proxy_batches: int = 2
    trial_steps: int = 32
    delta_steps: Sequence[int] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the scores that train for a few steps."""
        return ("trial", "delta", *(f"delta_{steps}" for steps in self.delta_steps))


@dataclass
class Lesson:
    """A task that is learned from the base model, again and again, in other blocks.

    Args:
        recipe: How an expert is trained.
        task: The task, with its test samples.
        seed: Seed of initial values, order of the samples and scored batches.
    """

    recipe: Recipe
    task: Task
    seed: int
    module: ContinualModule = field(init=False)
    data: ContinualDataModule = field(init=False)
    units: list[Unit] = field(init=False)

    def __post_init__(self) -> None:
        base = PretrainedBackbone(self.recipe.base_model)
        self.module = ContinualModule(
            base, SensitivityAllocator(), OracleRouter(), dropout=0.0, seed=self.seed
        )
        size = self.recipe.batch_size
        self.data = ContinualDataModule([self.task], batch_size=size, eval_batch_size=100)
        self.data.attach_processor(base.processor, base.context_length, base.prompts)
        self.units = self.module.units()

    def scores(self) -> dict[str, Scores]:
        """Return the scores of all blocks that need samples or weights."""
        self.module.eval()
        batches = self._proxy_batches()
        found = measured_scores(self.module, self.units, batches, self.recipe.rank)
        steps = (self.recipe.trial_steps, *self.recipe.delta_steps)
        deltas = [self.delta_scores(number) for number in steps]
        return found | dict(zip(self.recipe.trained, [self.trial_scores(), *deltas], strict=True))

    def trial_scores(self) -> Scores:
        """Return by how much a few steps of an expert in a block alone lower the loss.

        The loss is that of the batches of the other scores.
        """
        steps = self.recipe.trial_steps
        return {unit.name: self._trial([unit.name], steps)[0] for unit in self.units}

    def delta_scores(self, steps: int) -> Scores:
        """Return how far a few steps of experts in all blocks together move each block.

        These are the scores of the allocator, see `dmole.allocation.delta.relative_deltas`.
        """
        return self._trial([unit.name for unit in self.units], steps)[1]

    def _trial(self, blocks: Collection[str], steps: int) -> tuple[float, Scores]:
        """Train an expert for a few steps; return the fall of the loss, and how far it moved."""
        module, name = self.module, self.task.name
        module.eval()
        before = self._proxy_loss()
        module.add_expert(self._allocation(blocks))
        try:
            self._train(steps)
            module.eval()
            fall = before - self._proxy_loss(name)
            return fall, relative_deltas(module.library, name, self.units)
        finally:
            module.library.remove(name)

    def _proxy_batches(self) -> list[Batch]:
        return list(itertools.islice(self._batches("proxy", 0), self.recipe.proxy_batches))

    @torch.no_grad()
    def _proxy_loss(self, *experts: str) -> float:
        losses = [self.module.loss_with(batch, *experts) for batch in self._proxy_batches()]
        return float(torch.stack(losses).mean())

    def score(self, blocks: Collection[str] = ()) -> float:
        """Train an expert in some blocks and return the score of the test samples, percent.

        Args:
            blocks: Names of the blocks; none for the base model alone.
        """
        name, module = self.task.name, self.module
        if blocks:
            module.add_expert(self._allocation(blocks))
            self._train()
        module.eval()
        try:
            return Study(module, self.data).score(name, self._gates(bool(blocks)))
        finally:
            if blocks:
                module.library.remove(name)

    def _gates(self, trained: bool) -> list[tuple[str, ...]]:
        gates = (self.task.name,) if trained else ()
        return [gates] * len(self.data.test_samples(self.task.name))

    def _allocation(self, blocks: Collection[str]) -> Allocation:
        unknown = sorted(set(blocks) - {unit.name for unit in self.units})
        if unknown:
            raise ValueError(f"there is no block {unknown[0]!r}")
        entries = tuple(
            AllocationEntry(
                modality=unit.modality,
                unit=unit.name,
                score=None,
                expert=unit.name in blocks,
                rank=self.recipe.rank if unit.name in blocks else 0,
                linears=unit.linears,
                parameters=unit.parameters,
            )
            for unit in self.units
        )
        return Allocation(self.task.name, entries, {}, {})

    def _train(self, most: int | None = None) -> None:
        """Train the expert of the task.

        Args:
            most: Number of steps; None for all epochs of the task.
        """
        module, recipe, name = self.module, self.recipe, self.task.name
        module.begin_stage(StageContext(1, (name,), (name,), self.task.epochs, None))
        module.train()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.0)
        samples = len(self.data.train_samples(name))
        steps = self.task.epochs * -(-samples // recipe.batch_size)
        steps = steps if most is None else min(most, steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, recipe.warmup, "cosine")
        )
        epochs = (self._batches("train", epoch) for epoch in range(self.task.epochs))
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), steps):
            loss, _ = module.compute_step(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            schedule.step()

    def _batches(self, purpose: str, epoch: int) -> Iterator[Batch]:
        """Yield the training samples once, in an order that depends on purpose and epoch."""
        samples: Sequence[Any] = self.data.train_samples(self.task.name)
        seed = derive_seed(self.seed, purpose, epoch)
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        chosen = [(samples[index], self.task.name) for index in order.tolist()]
        yield from self.data.embedding_loader(chosen, batch_size=self.recipe.batch_size)
