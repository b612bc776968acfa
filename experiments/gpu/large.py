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
from dmole.models.recomputation import recomputed_in_evaluation
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
from experiments.gpu.llava import (
    SIZES,
    build_model,
    build_module,
    coin_setup,
    make_batch,
    planned,
    reckon,
    recompute,
)
from experiments.gpu.routed import (
    fit_router,
    forced_gates,
    outside_a_run,
    place_experts,
    training_step,
    without_labels,
)

STATE_BYTES = 18
"""Bytes of a parameter in a training step: value, gradient, two moments, copy of autocast."""

STEP_BYTES = 6
"""Those that are in memory within the step alone: gradient and copy."""


def proxy(setting: Setting, batches: Sequence[int] | None = None) -> Iterator[Row]:
    """Yield peak memory and time of the proxy pass, for falling batch sizes until one fits.

    Activations are recomputed and gradients kept in several passes, as with ``coin.yaml``, whose
    batch size is the first one by default.
    """
    module = build_module(setting)
    passes = module.allocator.proxy_passes
    held = held_gib(setting.device)
    yield "base model on the device, GiB", round(held, 1), "bfloat16"
    for size in batches or (coin_setup().batch_size, 4):
        work = functools.partial(_scores, module, make_batch(setting, size))
        name = f"proxy pass, batch {size}"
        note = planned(reckon(setting, size)["proxy pass"])
        try:
            peak = peak_gib(work, setting.device)
        except torch.OutOfMemoryError:
            yield name, "out of memory", note
            continue
        yield f"{name}, GiB in all", round(peak, 1), note
        times = medians({name: work}, setting.device, setting.repeats)
        note = f"recomputed activations, {passes} passes, gradients summed in fp32"
        yield f"{name}, s", round(times[name], 2), note
        return


def _scores(module: ContinualModule, batch: Batch) -> dict[str, float | None]:
    parameters = {
        unit.name: [s for path in unit.linears for s in module.backbone.gradient_sources(path)]
        for unit in module.units()
    }
    model, allocator = module.backbone.model, module.allocator
    with eval_mode(module.backbone), recomputed_in_evaluation(model):
        return score_gradients(
            model,
            parameters,
            [batch],
            module.base_loss,
            reduction=allocator.reduction,
            combine=allocator.combine,
            passes=allocator.proxy_passes,
        )


def _scored_expert(setting: Setting, module: ContinualModule, name: str) -> Allocation:
    """Add the expert that the allocator chooses for random data."""
    scores = _scores(module, make_batch(setting, 2))
    plan = module.allocator.allocate(name, module.units(), scores, first=True)
    module.add_expert(plan)
    return plan


def training(setting: Setting, size: int | None = None) -> Iterator[Row]:
    """Yield time and peak memory of a training step, with and without recomputed activations.

    The batch size is that of ``coin.yaml`` by default.
    """
    size = size or coin_setup().batch_size
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
            note = _step_note(setting, size, recomputed) if work == "dmole" else ""
            yield f"{work}, {name}, GiB beyond weights and states", round(extra, 1), note


def _step_note(setting: Setting, size: int, recomputed: bool) -> str:
    """Return what ``dmole plan`` reckons for a step, beyond weights and optimizer states."""
    step = reckon(setting, size, recompute=recomputed)["training step"]
    state = "expert in training"
    # gradients, and the copies in half precision, come with the step
    parts = {**step.parts, state: step.parts[state] * STEP_BYTES / STATE_BYTES}
    return planned(replace(step, parts=parts), "base model")


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
    evaluation = reckon(setting, size)["evaluation"]
    extra = peak_gib(works["one expert"], setting.device) - held_gib(setting.device)
    note = planned(evaluation, "base model", "experts")
    yield "one expert, GiB beyond weights and experts", round(extra, 1), note
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
    extra = peak_gib(works["embedding"], setting.device) - held_gib(setting.device)
    note = planned(reckon(setting, len(batch))["embedding"], "base model", "experts")
    yield "embedding, GiB beyond weights and experts", round(extra, 1), note
