"""After each stage: train the adapter with which the base model names the expert of a sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities import move_data_to_device

from dmole.curriculum.optimization import clip_gradients, parameter_groups, scheduled
from dmole.data.labels import IGNORED
from dmole.distributed import gather_objects
from dmole.experts.library import eval_mode
from dmole.experts.shape import ExpertShape
from dmole.models.embedder import sample_keys
from dmole.models.naming import ADAPTER, adapter_gates, name_experts, placed_adapter
from dmole.module import labels_of
from dmole.storage.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning.pytorch.cli import OptimizerCallable

    from dmole.data import Sample
    from dmole.data.batch import Batch
    from dmole.module import ContinualModule
    from dmole.routing.generative import GenerativeRouter
    from dmole.run.state import SequenceState
    from dmole.streams.stream import Stage

    TaskSample = tuple[Sample, str]


def stored_samples(
    router: GenerativeRouter, stage: Stage, items: Sequence[TaskSample]
) -> list[TaskSample]:
    """Return a uniform draw of a stage's samples, which does not depend on other stages.

    Args:
        router: Has number and seed.
        stage: The stage.
        items: Its training samples, without replayed ones.
    """
    seed = derive_seed(router.seed, "exemplars", stage.expert)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[index] for index in sorted(order[: router.exemplars].tolist())]


def fit_names(
    state: SequenceState,
    module: ContinualModule,
    router: GenerativeRouter,
    samples: Callable[[Stage], Sequence[TaskSample]],
    optimizer: OptimizerCallable | None = None,
) -> None:
    """Train the adapter of a router on the stored samples of all experts so far, from the start.

    All ranks make the same steps. It has the form of the newest expert, the experts' schedule, full
    precision and no dropout. A run that ends in it begins it again. Where several stages train an
    expert, the samples of the last one are stored.

    Args:
        state: Has the stages so far and the data.
        module: Has experts, optimizer and schedule.
        router: Receives names and adapter.
        samples: Returns the training samples of a stage.
        optimizer: Optimizer of the adapter; None takes that of the experts.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If two names have the same tokens, or a loss is not finite.
    """
    last = {stage.expert: stage for stage in state.learned()}
    kept = {name: stored_samples(router, s, samples(s)) for name, s in last.items()}
    router.labels = {name: _label(state, router, items[0], name) for name, items in kept.items()}
    if len(kept) < 2:
        return
    router.tree(list(kept))  # refuses names that cannot be told apart
    asked = [
        (router.asked(sample, name), task) for name, items in kept.items() for sample, task in items
    ]
    module.to(state.device)
    numbers = module.library.architecture()[str(state.stage.expert)]
    shapes = {path: ExpertShape.from_list(shape) for path, shape in numbers.items()}
    with placed_adapter(module.library, shapes), eval_mode(module.backbone):
        module.library.train_only(ADAPTER)
        _train(state, module, router, asked, optimizer or module.make_optimizer)
        router.adapter = {k: v.cpu() for k, v in module.library.state_dict(ADAPTER).items()}
        router.alpha = next(iter(shapes.values())).alpha
    module.focus(module.stage)


def _label(
    state: SequenceState, router: GenerativeRouter, item: TaskSample, name: str
) -> tuple[int, ...]:
    """Return the tokens of the answer that names an expert, as the adapter learns them."""
    sample, task = item
    batch = state.data.collator([(router.asked(sample, name), task)], generation=False)
    labels = labels_of(batch)[0]
    return tuple(labels[labels != IGNORED].tolist())


def _train(
    state: SequenceState,
    module: ContinualModule,
    router: GenerativeRouter,
    items: Sequence[TaskSample],
    make_optimizer: OptimizerCallable,
) -> None:
    """Train the placed adapter on samples that ask for the task."""
    steps = math.ceil(router.passes * len(items) / router.step_samples)
    parameters = list(module.library.parameters(ADAPTER))
    optimizer = make_optimizer(
        parameter_groups((module.library.modality(path), p) for path, p in parameters)
    )
    schedule = scheduled(optimizer, steps, module.warmup, module.schedule)
    for batch in state.until_requested(_batches(state, router, items), module):
        batch = move_data_to_device(batch, state.device)
        optimizer.zero_grad()
        with module.library.context.use(adapter_gates(module.backbone, batch)):
            loss = module.backbone.answer_output(batch.inputs, batch.targets).loss()
            loss.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(float(loss.detach())):
            raise ValueError(f"stage {state.stage.name}: the loss of the router is not finite")
        clip_gradients(state.trainer, [parameter for _, parameter in parameters])
        optimizer.step()
        schedule.step()
    state.interruption.check(state.strategy)


def _batches(
    state: SequenceState, router: GenerativeRouter, items: Sequence[TaskSample]
) -> Iterator[Batch]:
    """Return the batches of all epochs, each epoch in another order."""
    order: list[int] = []
    for epoch in range(router.passes):
        seed = derive_seed(router.seed, "naming", state.stage.index, epoch)
        generator = torch.Generator().manual_seed(seed)
        order += torch.randperm(len(items), generator=generator).tolist()
    loader = state.data.embedding_loader([items[i] for i in order], batch_size=router.step_samples)
    return iter(loader)


def name_samples(
    state: SequenceState,
    module: ContinualModule,
    router: GenerativeRouter,
    samples: Sequence[TaskSample],
    experts: Sequence[str],
) -> list[str]:
    """Return the expert that the model names for each test sample; the ranks share them.

    Args:
        state: Has data and device; connects the ranks.
        module: The base model.
        router: Has adapter and names.
        samples: Pairs of sample and task name.
        experts: Names of the experts to choose among.

    Raises:
        Interrupted: If a signal requested the end of the run.
    """
    module.to(state.device)
    asked = [(router.asked(sample), task) for sample, task in samples]
    loader = state.data.embedding_loader(asked, generation=True, shard=True)
    batches = state.until_requested(loader, module)
    found: dict[str, str] = {}
    with module.backbone.evaluating():
        for batch, names in name_experts(module, router, batches, experts):
            found |= dict(zip(sample_keys(batch)[: batch.real], names, strict=True))
    state.interruption.check(state.strategy)
    everywhere = {key: name for of_rank in gather_objects(found) for key, name in of_rank.items()}
    return [everywhere[f"{task}/test/{sample.id}"] for sample, task in samples]
