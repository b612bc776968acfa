"""Waits of the host for the GPU in a training step and in a decoding step, and who causes them."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import dmole
from dmole.allocation import UniformAllocator
from dmole.data import Batch, Task, open_source
from dmole.data.collate import Collator
from dmole.data.window import windows
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from experiments.gpu.common import Row, Setting, medians, need
from experiments.gpu.routed import (
    fit_router,
    forced_gates,
    outside_a_run,
    place_experts,
    training_step,
)

MESSAGE = "called a synchronizing CUDA operation"
ROOT = Path(dmole.__file__).parents[1]


def syncs(setting: Setting, sizes: tuple[int, ...] = (1, 8, 32), rows: int = 8) -> Iterator[Row]:
    """Yield the host syncs of a step by number of experts, and the lines that cause them."""
    need(setting.accelerator == "cuda", "host syncs are counted by CUDA alone")
    for size in sizes:
        module = tiny_module(setting, size)
        batch, prompts = (tiny_batch(setting, module, rows, train=train) for train in (True, False))
        step = training_step(module, batch)
        step()
        places = caused_by(step)
        yield f"{size} experts: syncs of a training step", places.total(), _lines(places)
        module.eval()
        few, more = (caused_by(answering(module, prompts, tokens)) for tokens in (4, 12))
        decoding = Counter(more)
        decoding.subtract(few)
        yield f"{size} experts: syncs of a decoding step", decoding.total() / 8, _lines(+decoding)
        yield f"{size} experts: syncs of a prefill with 4 tokens", few.total(), _lines(few)


def tiny_times(
    setting: Setting, sizes: tuple[int, ...] = (1, 8, 64), rows: int = 8, tokens: int = 16
) -> Iterator[Row]:
    """Yield the times of a step and of an answer with the embedded model, by number of experts."""
    steps: dict[str, Callable[[], object]] = {}
    answers: dict[str, Callable[[], object]] = {}
    for size in sizes:
        module = tiny_module(setting, size)
        batch, prompts = (tiny_batch(setting, module, rows, train=train) for train in (True, False))
        steps[f"{size} experts: training step"] = training_step(module, batch)
        other = tiny_module(setting, size).eval()
        if not answers:
            answers["bare: answer"] = answering(other, prompts, tokens, bare=True)
        answers[f"{size} experts: answer"] = answering(other, prompts, tokens)
    for works in (steps, answers):
        times = medians(works, setting.device, setting.repeats)
        first = next(iter(times.values()))
        for name, value in times.items():
            note = f"batch {rows}; {value / first:.3f} of the first"
            yield f"{name}, ms", round(1000 * value, 2), note


def tiny_module(setting: Setting, experts: int, **options: Any) -> ContinualModule:
    """Return the embedded model with experts and router entries; the last expert trains."""
    backbone, allocator = PretrainedBackbone("tiny"), UniformAllocator(rank=8)
    module = ContinualModule(backbone, allocator, AutoencoderRouter(components=16), **options)
    names = place_experts(module, [f"task{index}" for index in range(experts)], 8, 16.0)
    module.to(setting.device)
    embeddings = module.embed(tiny_batch(setting, module, 64, train=False), remember=False)
    fit_router(module, names, embeddings)
    outside_a_run(module, names[-1])
    return module


def tiny_batch(setting: Setting, module: ContinualModule, size: int, *, train: bool) -> Batch:
    """Return samples of one synthetic task on the device."""
    urls = {split: f"synthetic://count/{split}?size={size}" for split in ("train", "test")}
    task = Task("count", train=urls["train"], test=urls["test"])
    samples = open_source(task, "train" if train else "test", Path())
    collate = Collator(module.backbone.processor)
    batch = collate([(sample, "count") for sample in samples], generation=not train)
    if train:
        (batch,) = windows([batch], size=1, start=0, end=1)  # as the loader does
    return batch.to(setting.device)


def answering(
    module: ContinualModule, batch: Batch, tokens: int, *, bare: bool = False
) -> Callable[[], object]:
    """Return a function that answers with up to eight experts in the batch, as many tokens each."""
    gates = None if bare else forced_gates(module, batch, module.experts[:8])

    def answer() -> object:
        with module.library.context.use(gates):
            return module.backbone.generate_tokens(batch.inputs, tokens, min_new_tokens=tokens)

    return answer


def caused_by(work: Callable[[], object]) -> Counter[str]:
    """Return the host syncs of some work by the innermost line of this project that causes them."""
    places: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if MESSAGE not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if _own(frame.filename)]
        place = "elsewhere"
        if frames:
            place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}"
        places[place] += 1

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return places


def _own(filename: str) -> bool:
    return Path(filename).is_relative_to(ROOT / "dmole")


def _lines(places: Counter[str]) -> str:
    return ", ".join(f"{place} x {count}" for place, count in places.most_common(8)) or "none"
