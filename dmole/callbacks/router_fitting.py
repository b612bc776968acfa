"""After each stage: fit the router to the stage's embeddings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dmole.callbacks.base import ContinualCallback, parts
from dmole.distributed import broadcast, gather_objects
from dmole.models.embedder import sample_keys
from dmole.run.embeddings import save_embeddings
from dmole.run.run_files import RunFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.routing import RouterFit
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

EMBEDDING_SAMPLES = 2000
"""Training samples of a stage that its router is fitted to, unless a config says otherwise."""


class RouterFitting(ContinualCallback):
    """Embeds a subset of each stage's training samples and fits the router to it after the stage.

    Replayed samples are left out, since the learner knows that they do not belong to the new task.
    Samples of neighboring tasks in a blurred stage are included, since a learner without task
    labels cannot recognize them.

    Args:
        embedding_samples: Maximum number of training samples of a stage for the router.
        seed: Seed of their choice.

    Raises:
        ValueError: If ``embedding_samples`` is below 2.
    """

    def __init__(self, embedding_samples: int = EMBEDDING_SAMPLES, seed: int = 0) -> None:
        if embedding_samples < 2:
            raise ValueError(f"embedding_samples must be at least 2, got {embedding_samples}")
        self.embedding_samples = embedding_samples
        self.seed = seed
        self.fits: dict[str, RouterFit] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Embed the stage's subset before training, where the choice of partners needs it first."""
        state, module = parts(trainer, pl_module)
        if stage == "fit" and module.router.needs_embeddings:
            with state.timed("embed"):
                self._embeddings(state, module)

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Fit the router on rank 0, send it to all ranks and write it."""
        if module.router.needs_embeddings:
            embeddings = self._embeddings(state, module)
            expert = state.stage.expert
            if state.is_global_zero:
                fit = module.router.fit(expert, embeddings)
                if fit is not None:
                    self.fits[expert] = fit
                    log.info("router: threshold %.4g for expert %s", fit.threshold, expert)
                    if fit.rounding:
                        log.warning(
                            "the held-out samples of expert %s repeat its training samples: "
                            "its threshold allows for rounding only",
                            expert,
                        )
            module.router.load_state_dict(broadcast(module.router.state_dict()))
        save_embeddings(state, module)  # regularizers embed samples too
        # all tasks, since a stage may draw samples of any task
        names = state.data.training_task_names
        module.embedder.cache.forget(*(f"{name}/train/" for name in names))
        state.put(*self.run_files(state, module))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Move the embeddings of the steps so far to disk, for a resumed run."""
        save_embeddings(*parts(trainer, pl_module))

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Before training, write the router, so that any run folder can be read."""
        if not state.stage.index and not module.library.names:
            state.put(*self.run_files(state, module))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return the folder of the router."""

        def write(run: Path) -> None:
            module.router.save(run / "router")

        yield RunFile("router", write)

    def _embeddings(self, state: SequenceState, module: ContinualModule) -> Tensor:
        """Return the embeddings of the stage's subset, ``(N, D)``, the same on every rank."""
        items = state.data.arriving_items(state.stage)
        indices = choose_samples(len(items), self.embedding_samples, self.seed)
        return embed_samples(state, module, [items[i] for i in indices], "train")

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, since the router is saved with the sequence."""
        return {}


def choose_samples(samples: int, most: int, seed: int) -> list[int]:
    """Return the indices of the samples that a router is fitted to, in order.

    Args:
        samples: Number of training samples.
        most: Maximum number of indices; a random subset if there are more samples.
        seed: Seed of the subset.
    """
    if samples <= most:
        return list(range(samples))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(samples, generator=generator)[:most].tolist()
    return sorted(order)


def embed_samples(
    state: SequenceState,
    module: ContinualModule,
    samples: Sequence[tuple[Sample, str]],
    split: str,
) -> Tensor:
    """Return the embeddings of samples; the ranks share the computation of uncached ones.

    Args:
        state: Has data and device; connects the ranks.
        module: Computes and caches the embeddings.
        samples: Pairs of sample and task name.
        split: ``train`` or ``test``; ids are unique within task and split.

    Returns:
        ``(N, D)`` fp32 on the CPU, in the order of the samples, equal on every rank.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If an embedding is not finite; names the sample.
    """
    world = state.data.eval_batch_size * state.world_size  # samples of a batch of every rank
    chunk = world * max(1, _AT_ONCE // world)
    parts = range(0, len(samples), chunk)
    return torch.cat([_embed(state, module, samples[i : i + chunk], split, world) for i in parts])


_AT_ONCE = 4096  # samples after which embeddings are moved to disk


def _embed(
    state: SequenceState,
    module: ContinualModule,
    samples: Sequence[tuple[Sample, str]],
    split: str,
    size: int,
) -> Tensor:
    """Return the embeddings of some samples, see `embed_samples`.

    If one of ``size`` samples that share batches is not known, all of them are computed, so that
    an embedding does not depend on what was known.
    """
    cache = module.embedder.cache
    keys = [f"{task}/{split}/{sample.id}" for sample, task in samples]
    known = cache.found(keys)
    missing = set().union(*gather_objects([key for key in keys if key not in known]))
    begins = [i for i in range(0, len(keys), size) if not missing.isdisjoint(keys[i : i + size])]
    if begins:
        computed = _compute(
            state, module, [p for i in begins for p in samples[i : i + size]], split
        )
        new = {key: row for key, row in computed.items() if key in missing}
        cache.add(list(new), torch.stack(list(new.values())))
        known |= new
        save_embeddings(state, module)
    return torch.stack([known[key] for key in keys])


def _compute(
    state: SequenceState,
    module: ContinualModule,
    samples: Sequence[tuple[Sample, str]],
    split: str,
) -> dict[str, Tensor]:
    """Return the embeddings of samples by key, computed by all ranks together.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If an embedding is not finite; names the sample.
    """
    module.to(state.device)
    rows: dict[str, Tensor] = {}
    loader = state.data.embedding_loader(samples, generation=split == "test", shard=True)
    for batch in state.interruption.until_requested(loader):
        computed = module.compute_embeddings(move_data_to_device(batch, state.device))  # (B, D)
        rows |= dict(zip(sample_keys(batch), computed, strict=True))
    state.interruption.check(state.strategy)
    found = {key: row for of_rank in gather_objects(rows) for key, row in of_rank.items()}
    for key, row in found.items():
        if not torch.isfinite(row).all():
            raise ValueError(f"the router embedding of sample {key} is not finite")
    return found
