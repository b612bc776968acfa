"""A random LLaVA-1.5-7B: proxy pass, training step and generation, beside the bare model and PEFT.

Its experts are those of ``coin.yaml``. Weights are random, so plan and answers mean nothing; time
and memory do not depend on them.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from dmole.allocation import Allocation, score_gradients
from dmole.data import Batch
from dmole.experts.library import eval_mode
from dmole.module import ContinualModule
from experiments.gpu.common import (
    GIB,
    Row,
    Setting,
    held_gib,
    medians,
    milliseconds,
    need,
    peak_gib,
)
from experiments.gpu.llava import SIZES, build_model, build_module, make_batch, reckoned, recompute
from experiments.gpu.routed import (
    fit_router,
    forced_gates,
    outside_a_run,
    place_experts,
    training_step,
    without_labels,
)


def proxy(setting: Setting, batches: Sequence[int] = (14, 4)) -> Iterator[Row]:
    """Yield peak memory and time of the proxy pass, for falling batch sizes until one fits."""
    module = build_module(setting)
    held = held_gib(setting.device)
    yield "base model on the device, GiB", round(held, 1), "bfloat16"
    for size in batches:
        work = functools.partial(_scores, module, make_batch(setting, size))
        name = f"proxy pass, batch {size}"
        try:
            extra = peak_gib(work, setting.device) - held
        except torch.OutOfMemoryError:
            yield name, "out of memory", reckoned(setting, size, proxy=True)
            continue
        note = reckoned(setting, size, proxy=True)
        yield f"{name}, GiB beyond the base model", round(extra, 1), note
        times = medians({name: work}, setting.device, setting.repeats)
        yield f"{name}, s", round(times[name], 2), "gradients summed in fp32"
        return


def _scores(module: ContinualModule, batch: Batch) -> dict[str, float | None]:
    parameters = {
        unit.name: [s for path in unit.linears for s in module.backbone.gradient_sources(path)]
        for unit in module.units()
    }
    with eval_mode(module.backbone):
        return score_gradients(module.backbone.model, parameters, [batch], module.base_loss)


def _scored_expert(setting: Setting, module: ContinualModule, name: str) -> Allocation:
    """Add the expert that the allocator chooses for random data."""
    scores = _scores(module, make_batch(setting, 2))
    plan = module.allocator.allocate(name, module.units(), scores, first=True)
    module.add_expert(plan)
    return plan


def training(setting: Setting, size: int = 4) -> Iterator[Row]:
    """Yield time and peak memory of a training step, with and without recomputed activations."""
    module, batch = build_module(setting), make_batch(setting, size)
    plan = _scored_expert(setting, module, "task")
    count = module.count_parameters(plan)
    yield "parameters of an expert", count, f"{len(plan.experts)} of {len(plan.entries)} blocks"
    outside_a_run(module, "task")
    step = training_step(module, batch)
    adapted, rank = _peft(setting, module, count, ["default"])
    yield "rank of PEFT's LoRA on all blocks", rank, "as many parameters"
    other = _peft_step(adapted, batch)
    bare = module.backbone.model

    def forward() -> None:
        with torch.no_grad(), module.library.context.use(None):
            bare(**batch.inputs, labels=batch.labels, use_cache=False)

    works: dict[str, Callable[[], object]] = {"bare forward": forward, "dmole": step, "PEFT": other}
    tokens = batch.inputs["input_ids"].numel()
    for recomputed in (True, False):
        name = "recomputed activations" if recomputed else "kept activations"
        for model in (bare, adapted):
            recompute(model, recomputed)
        times = medians(works, setting.device, setting.repeats)
        for work, value in times.items():
            yield (
                f"{work}, {name}, ms",
                round(1000 * value, 1),
                (f"batch {size}, {tokens / value:,.0f} tokens/s"),
            )
        yield f"dmole / PEFT, {name}", round(times["dmole"] / times["PEFT"], 3), ""
        for work in ("dmole", "PEFT"):
            extra = peak_gib(works[work], setting.device) - held_gib(setting.device)
            note = reckoned(setting, size, recomputed=recomputed) if work == "dmole" else ""
            yield f"{work}, {name}, GiB beyond weights and states", round(extra, 1), note


def _peft(
    setting: Setting, module: ContinualModule, parameters: int, names: Sequence[str]
) -> tuple[Any, int]:
    """Return a second model with LoRA on all blocks, and the rank that gives as many parameters."""
    peft = _import_peft()
    sizes = module.backbone.linear_shapes()
    rank = max(1, round(parameters / sum(sum(size) for size in sizes.values())))
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=list(sizes)
    )
    with torch.device(setting.device):
        model = peft.get_peft_model(build_model(setting), config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
    with warnings.catch_warnings():  # of names that transformers has replaced
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, rank


def _import_peft() -> Any:
    try:
        import peft
    except ImportError:
        need(False, "package peft is not installed")
    return peft


def _peft_step(model: Any, batch: Batch) -> Callable[[], None]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    model.train()

    def step() -> None:
        with torch.autocast(batch.image_counts.device.type, torch.bfloat16):
            loss = model(**batch.inputs, labels=batch.labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def generation(setting: Setting, size: int = 16, experts: int = 8) -> Iterator[Row]:
    """Yield the time of answers: bare, one expert, experts of several tasks, PEFT's mixed batch."""
    rank, _, length = SIZES[setting.base]
    module, batch = build_module(setting), without_labels(make_batch(setting, size))
    names = place_experts(module, [f"task{i}" for i in range(experts)], rank, 2.0 * rank)
    yield (
        "experts on the device, GiB",
        round(sum(4 * module.library.count(name) for name in names) / GIB, 1),
        f"{experts} of rank {rank} in fp32, on halves of the blocks",
    )
    module.eval()
    adapted, _ = _peft(setting, module, module.library.count(names[0]), names)
    adapted.eval()
    rows = [names[index % experts] for index in range(size)]

    def answer(chosen: Sequence[str] | None) -> Callable[[], object]:
        gates = None if chosen is None else forced_gates(module, batch, chosen)

        def work() -> object:
            with module.library.context.use(gates), _mixed(setting):
                return module.backbone.generate_tokens(batch.inputs, length)

        return work

    def theirs() -> object:
        with torch.no_grad(), _mixed(setting):
            return adapted.generate(
                **batch.inputs, max_new_tokens=length, do_sample=False, adapter_names=rows
            )

    def plain() -> object:
        with module.library.context.use(None):
            return module.backbone.generate_tokens(batch.inputs, length)

    works: dict[str, Callable[[], object]] = {
        "bare": answer(None),
        "bare, without autocast": plain,
        "one expert": answer(names[:1]),
        f"{experts} experts in the batch": answer(names),
        "PEFT, adapters mixed": theirs,
    }
    note = f"batch {size}, {length} new tokens; merged weights cost what the bare model does"
    times = medians(works, setting.device, setting.repeats)
    yield from milliseconds(times, note)
    for name, value in list(times.items())[1:]:
        yield f"{name} / bare", round(value / times["bare"], 3), ""
    yield from _routing(setting, module, names, batch)


def _mixed(setting: Setting) -> torch.autocast:
    return torch.autocast(setting.accelerator, torch.bfloat16)


def _routing(
    setting: Setting, module: ContinualModule, names: Sequence[str], batch: Batch
) -> Iterator[Row]:
    """Yield the time to embed and to route a sample."""
    embeddings = module.embed(batch, remember=False)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(
        max(256, 2 * SIZES[setting.base][0]), embeddings.shape[1], generator=generator
    )
    fit_router(module, names, embeddings.mean(dim=0) + noise)
    numbers = itertools.count()

    def fresh() -> Batch:
        number = next(numbers)
        return replace(batch, sample_ids=[f"{number}/{index}" for index in range(len(batch))])

    works: dict[str, Callable[[], object]] = {
        "embedding": lambda: module.embed(fresh(), remember=False),
        "embedding and routing": lambda: module.route(fresh()),
    }
    times = medians(works, setting.device, setting.repeats)
    for name, value in times.items():
        yield (
            f"{name} of a sample, ms",
            round(1000 * value / len(batch), 2),
            (f"batch {len(batch)}, {len(names)} experts"),
        )
