"""Pairs of alike tasks with little data for the second: does a past expert help, and how?

    python -m experiments.alike_pairs --output docs/results/alike/pairs.csv

The first task of a pair is learned once for each seed. From there the second task is learned
several times: alone, with the first expert as a running partner (where the router lets it in, or
always), and started from the first expert. Both tasks are then answered by each expert alone and by
their sum. The loop is written out here, with the module's own step, as a run has one course only.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dmole.allocation import Allocation, SensitivityAllocator, score_gradients
from dmole.curriculum.optimization import learning_rate_factor
from dmole.data import Batch, Task
from dmole.datamodule import ContinualDataModule
from dmole.metrics.routing_rates import partner_rate
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from dmole.run.context import StageContext
from dmole.storage.files import write_csv
from experiments.routing_rules import Study

PAIRS = {
    "pictures": ("count", "tally"),
    "words": ("hollow", "striped"),
    "answers": ("count", "letters"),
}
"""Two tasks that differ in their pictures, in a word of the question, in the form of the answer."""
FIRST_SIZE = 500
SIZES = (50, 200)
EPOCHS, BATCH, RATE, WARMUP = 2, 8, 3e-3, 0.05  # as in configs/benchmarks/alike.yaml
EVER = 1e9  # a threshold scale at which every expert accepts every sample
VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {"partner": False},
    "partner": {},
    "partner_always": {"threshold_scale": EVER},
    "started": {"partner": False},
}
"""Settings of the router while the second task is learned."""
HEADER = ("pair", "size", "seed", "variant", "partner_rate", "second_own", "second_sum",
          "first_own", "first_sum")  # fmt: skip


def make_data(pair: tuple[str, str], size: int, seed: int) -> ContinualDataModule:
    """Return a pair of tasks, with samples that depend on the seed and test samples that do not."""
    sizes = zip(pair, (FIRST_SIZE, size), strict=True)
    tasks = [
        Task(
            name,
            train=f"synthetic://{name}/train?size={count}&seed={seed}",
            test=f"synthetic://{name}/test?size=200",
            max_new_tokens=4,
        )
        for name, count in sizes
    ]
    return ContinualDataModule(tasks, batch_size=BATCH, eval_batch_size=100)


def make_module(seed: int) -> ContinualModule:
    """Return a module without experts."""
    return ContinualModule(
        PretrainedBackbone("tiny"),
        SensitivityAllocator(),
        AutoencoderRouter(partner=False),
        dropout=0.0,
        seed=seed,
    )


def batches(data: ContinualDataModule, task: str, seed: int) -> Iterator[Batch]:
    """Yield the training batches of one epoch in random order."""
    samples = data.train_samples(task)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [(samples[index], task) for index in order]
    yield from data.embedding_loader(chosen, batch_size=BATCH)


def place(module: ContinualModule, data: ContinualDataModule, task: str) -> Allocation:
    """Return the allocation of a task by the gradients of one batch, as published."""
    units = module.units()
    parameters = {
        unit.name: [s for path in unit.linears for s in module.backbone.gradient_sources(path)]
        for unit in units
    }
    module.eval()
    proxy = itertools.islice(batches(data, task, module.seed), 1)
    scores = score_gradients(module.backbone.model, parameters, proxy, module.base_loss)
    return module.allocator.allocate(task, units, scores, first=not module.library.names)


def learn(module: ContinualModule, data: ContinualDataModule, plan: Allocation) -> float | None:
    """Train the expert of a task and fit the router; return the partner rate in percent."""
    task = plan.expert
    module.add_expert(plan)
    module.begin_stage(StageContext(2, (task,), (task,), EPOCHS, plan))
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    steps = EPOCHS * -(-len(data.train_samples(task)) // BATCH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, WARMUP, "cosine")
    )
    for epoch in range(EPOCHS):
        for batch in batches(data, task, 1000 * module.seed + epoch):
            loss, step = module.compute_step(batch)
            module.count_gate_sets(step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
    module.eval()
    samples = [(sample, task) for sample in data.train_samples(task)]
    with torch.no_grad():
        rows = [module.embed(batch) for batch in data.embedding_loader(samples)]
    module.router.fit(task, torch.cat(rows))
    counts = [(2, *key, n) for key, n in module.stage.gate_sets.items()]
    return partner_rate(counts, {2: [task]})


def study_pair(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of all sizes and variants of a pair."""
    pair = PAIRS[name]
    data = make_data(pair, SIZES[-1], seed)
    first = make_module(seed)
    base = first.backbone
    data.attach_processor(base.processor, base.context_length, base.prompts)
    plan = place(first, data, pair[0])
    learn(first, data, plan)
    for size, (variant, settings) in itertools.product(SIZES, VARIANTS.items()):
        module, data = copy.deepcopy(first), make_data(pair, size, seed)
        data.attach_processor(base.processor, base.context_length, base.prompts)
        router = AutoencoderRouter(**settings)
        router.load_state_dict(first.router.state_dict())
        module.router = router
        own = place(module, data, pair[1])
        rate = learn(module, data, own.starting_from(plan) if variant == "started" else own)
        study = Study(module, data)
        scores = {
            f"{which}_{how}": study.score(task, [gates] * 200)
            for which, task in zip(("first", "second"), pair, strict=True)
            for how, gates in (("own", (task,)), ("sum", pair))
        }
        yield (
            {"pair": name, "size": size, "seed": seed, "variant": variant}
            | scores
            | {"partner_rate": "" if rate is None else f"{rate:.1f}"}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed, name in itertools.product(options.seeds, options.pairs):
        for row in study_pair(name, seed):
            rows.append(row)
            print(row, flush=True)
            write_csv(options.output, HEADER, rows)


if __name__ == "__main__":
    main()
