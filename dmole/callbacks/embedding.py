"""Embeddings of chosen samples, computed by all ranks together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from dmole.data.evaluation_batches import prompt_length
from dmole.distributed import gather_objects
from dmole.models.embedder import sample_keys
from dmole.run.embeddings import save_embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.data import Sample
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


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

    Samples of similar length share batches. If one of ``size`` samples that share batches is not
    known, all of them are computed, so that an embedding does not depend on what was known.
    """
    cache = module.embedder.cache
    keys = [f"{task}/{split}/{sample.id}" for sample, task in samples]
    known = cache.found(keys)
    missing = set().union(*gather_objects([key for key in keys if key not in known]))
    order = sorted(range(len(keys)), key=lambda i: prompt_length(samples[i][0]), reverse=True)
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    chosen = [i for group in groups if any(keys[i] in missing for i in group) for i in group]
    if chosen:
        computed = _compute(state, module, [samples[i] for i in chosen], split)
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
    with module.backbone.evaluating():
        for batch in state.until_requested(loader, module):
            computed = module.compute_embeddings(move_data_to_device(batch, state.device))  # (B, D)
            rows |= dict(zip(sample_keys(batch)[: batch.real], computed, strict=False))
    state.interruption.check(state.strategy)
    found = {key: row for of_rank in gather_objects(rows) for key, row in of_rank.items()}
    for key, row in found.items():
        if not torch.isfinite(row).all():
            raise ValueError(f"the router embedding of sample {key} is not finite")
    return found
