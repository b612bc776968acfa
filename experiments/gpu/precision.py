"""Lower precisions: whether runs finish, what they learn, and what batch mates change."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import dmole
from dmole.data import Sample, Task, open_source
from dmole.data.collate import Collator
from dmole.inference import Request, RoutedModel
from dmole.module import ContinualModule
from dmole.routing.routers import route_by_name
from experiments.gpu.common import Row, Setting
from experiments.gpu.runs import RunBuilder, compare, tasks

TASKS = ("paint", "count")
PRECISIONS = {
    "fp32": ("32-true", "float32"),
    "bf16-mixed": ("bf16-mixed", "float32"),
    "16-mixed": ("16-mixed", "float32"),
    "bf16-mixed, base in bfloat16": ("bf16-mixed", "bfloat16"),
}
"""Precision of the trainer and dtype of the base model. Lightning's ``bf16-true`` is refused."""


def precision(setting: Setting, train: int = 128, test: int = 40) -> Iterator[Row]:
    """Yield the scores of runs at each precision, and whether answers depend on their batch."""
    builder = RunBuilder(setting)
    data = {"tasks": tasks(TASKS, train, test), "eval_batch_size": 8}
    runs: dict[str, Path] = {}
    for name, (trainer, dtype) in PRECISIONS.items():
        run = builder.build(
            f"run_{len(runs)}",
            data,
            trainer={"precision": trainer},
            model={"backbone.init_args.dtype": dtype},
        )
        runs[name] = run.fit()
        yield f"{name}: Last, percent", last(runs[name]), ""
        if name != "fp32":
            for what, value in compare(runs[name], runs["fp32"]):
                yield f"{name} and fp32: {what}", value, ""
        if name in ("fp32", "bf16-mixed"):
            yield from _batch_mates(setting, run.module, name, runs[name], test)


def last(run: Path) -> float:
    """Return the mean score on all tasks at the end of a run, in percent."""
    return round(float(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["Last"]), 2)


def requests_of(count: int, tokens: int = 4) -> list[Request]:
    """Return test samples of the tasks in turn, as requests."""
    return [Request(s.turns, s.images, tokens) for s in _samples(count)]


def _samples(count: int) -> list[Sample]:
    groups = [
        open_source(Task(name, test=f"synthetic://{name}/test?size={count}"), "test", Path())
        for name in TASKS
    ]
    return list(itertools.chain.from_iterable(zip(*groups, strict=True)))[:count]


def texts(model: RoutedModel, requests: Sequence[Request], batch: int) -> list[str]:
    """Return the answers to requests, in batches of a size."""
    parts = [requests[start : start + batch] for start in range(0, len(requests), batch)]
    return [answer.text for part in parts for answer in model.answer(part)]


def _batch_mates(
    setting: Setting, module: ContinualModule, name: str, run: Path, count: int
) -> Iterator[Row]:
    model, requests = dmole.load(run, device=setting.accelerator), requests_of(count)
    alone, together = (texts(model, requests, size) for size in (1, 8))
    same = sum(a == b for a, b in zip(alone, together, strict=True)) / count
    yield f"{name}: share of equal answers, batch of 1 and of 8", round(same, 4), f"{count} samples"
    mixed = PRECISIONS[name][0] == "bf16-mixed"
    module.to(setting.device)
    with torch.no_grad(), torch.autocast(setting.device.type, torch.bfloat16, enabled=mixed):
        gap, size = _logit_gap(module, _samples(8))
    yield (
        f"{name}: largest difference of a logit, batch of 8 and alone",
        f"{gap:.2e}",
        (f"experts of two tasks in the batch; largest logit {size:.1f}"),
    )


def _logit_gap(module: ContinualModule, samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the largest difference between logits of a mixed batch and alone, and their size."""
    order = [(TASKS[index % 2],) for index in range(len(samples))]
    together = _next_logits(module, samples, order)
    alone = torch.cat(
        [_next_logits(module, [sample], [own]) for sample, own in zip(samples, order, strict=True)]
    )
    return float((together - alone).abs().max()), float(alone.abs().max())


def _next_logits(
    module: ContinualModule, samples: Sequence[Sample], order: Sequence[tuple[str, ...]]
) -> Tensor:
    """Return the logits of the first answer token, ``(B, V)``."""
    items = [(sample, "prompt") for sample in samples]
    batch = Collator(module.backbone.processor)(items, generation=True)
    batch.inputs = {key: value.to(module.device) for key, value in batch.inputs.items()}
    gates = module.make_gates(route_by_name(list(order), module.experts).gates, batch)
    with module.library.context.use(gates):
        logits: Tensor = module.backbone.outputs(batch.inputs).logits
    return logits[:, -1].float()  # prompts are padded on the left
