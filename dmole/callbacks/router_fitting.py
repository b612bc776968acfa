"""After each stage: fit the router to the stage's embeddings."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dmole.callbacks.base import ContinualCallback, parts
from dmole.callbacks.embedding import embed_samples
from dmole.callbacks.task_naming import fit_names, stored_samples
from dmole.distributed import broadcast
from dmole.routing.entries import learned_part
from dmole.routing.generative import GenerativeRouter
from dmole.routing.query import RouteQuery
from dmole.routing.routers import LearningRouter
from dmole.routing.storage import INDEX, write_tensors
from dmole.run.embeddings import save_embeddings
from dmole.run.run_files import RunFile
from dmole.storage.files import write_csv
from dmole.storage.tensors import DigestCache, tensor_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dmole.module import ContinualModule
    from dmole.routing import Router, RouterFit
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

EXEMPLARS = "exemplars.csv"
EXEMPLARS_HEADER = ("expert", "task", "id")

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
        self._embedded = False
        self._digests = DigestCache(tensor_digest)
        self._written: dict[str, str] = {}
        self._kept: dict[int, list[dict[str, str]]] = {}  # by stage

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Embed the stage's subset before training where partners are chosen, which need it first.

        Else it is embedded after training, for the router.
        """
        state, module = parts(trainer, pl_module)
        self._embedded = stage == "fit" and _chooses_partners(state, module)
        if self._embedded:
            with state.timed("embed"):
                self._embeddings(state, module)

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Fit the router on rank 0, send it to all ranks and write it."""
        if module.router.needs_embeddings:
            # embeddings that were computed before training are only read
            with nullcontext() if self._embedded else state.timed("embed"):
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
        if isinstance(module.router, GenerativeRouter):
            with state.timed("naming"):
                fit_names(state, module, module.router, state.data.arriving_items)
            module.router.load_state_dict(broadcast(module.router.state_dict()))
        save_embeddings(state, module)  # regularizers embed samples too
        # all tasks, since a stage may draw samples of any task
        names = state.data.training_task_names
        module.embedder.cache.forget(*(f"{name}/train/" for name in names))
        state.put(*self._changed(state, module))

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
        """Return the file of each expert of the router, then its index."""
        inner = learned_part(module.router)
        for name, tensors in {} if inner is None else inner.tensors().items():
            yield _entry(name, tensors)
        yield _index(module.router if inner is None else inner)
        yield from self._exemplars(state, module.router)

    def _exemplars(self, state: SequenceState, router: Router) -> Iterator[RunFile]:
        """Return ``exemplars.csv``, the samples that a router stores of fitted experts."""
        if not isinstance(router, GenerativeRouter) or not router.labels:
            return
        new = [
            s for s in state.learned() if s.expert in router.labels and s.index not in self._kept
        ]
        for stage in new:
            items = stored_samples(router, stage, state.data.arriving_items(stage))
            self._kept[stage.index] = [
                {"expert": stage.expert, "task": task, "id": sample.id} for sample, task in items
            ]
        last = {stage.expert: stage.index for stage in state.learned()}
        rows = [row for index in last.values() for row in self._kept.get(index, ())]
        yield RunFile(EXEMPLARS, lambda run: write_csv(run / EXEMPLARS, EXEMPLARS_HEADER, rows))

    def _changed(self, state: SequenceState, module: ContinualModule) -> list[RunFile]:
        """Return the files whose tensors are not those written last, and the index."""
        inner = learned_part(module.router)
        found = []
        for name, tensors in {} if inner is None else inner.tensors().items():
            before, digest = self._written.get(name), self._digests.of(name, tensors)
            if digest != before:
                found.append(_entry(name, tensors))
                self._written[name] = digest
        index = _index(module.router if inner is None else inner)
        return [*found, index, *self._exemplars(state, module.router)]

    def _embeddings(self, state: SequenceState, module: ContinualModule) -> Tensor:
        """Return the embeddings of the stage's subset, ``(N, D)``, the same on every rank."""
        items = state.data.arriving_items(state.stage)
        indices = choose_samples(len(items), self.embedding_samples, self.seed)
        return embed_samples(state, module, [items[i] for i in indices], "train")

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, since the router is saved with the sequence."""
        return {}


def _chooses_partners(state: SequenceState, module: ContinualModule) -> bool:
    """Return whether the router chooses partners of the stage's expert by embeddings."""
    expert = state.stage.expert
    experts = tuple(dict.fromkeys((*module.experts, expert)))
    return module.router.needs(RouteQuery(None, list(state.stage.tasks), "train", expert, experts))


def _entry(name: str, tensors: Mapping[str, Tensor]) -> RunFile:
    """Return the file of the router's tensors of an expert."""
    file = f"router/{name}.safetensors"
    return RunFile(file, lambda run: write_tensors(run / "router", name, tensors))


def _index(router: Router) -> RunFile:
    """Return the index of a router."""

    def write(run: Path) -> None:
        if isinstance(router, LearningRouter):
            router.save_index(run / "router")
        else:
            router.save(run / "router")

    return RunFile(f"router/{INDEX}", write)


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
