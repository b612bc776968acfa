"""Memory and GPU hours for large base models, estimated from their shapes without a run.

Prints the tables of docs/scaling.md. The formulas are in `experiments.costs.scaling` and
`experiments.costs.workload`; tests compare them with measurements of tiny models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from dmole.benchmarks.cmit import BENCHMARK
from experiments.costs.base_models import LARGE
from experiments.costs.scaling import (
    FP32,
    Load,
    ModelSizes,
    base_parameters,
    cache_bytes,
    loss_bytes,
    proxy_activation_bytes,
    proxy_gradient_bytes,
    router_bytes,
    task_parameters,
    training_activation_bytes,
    training_state_bytes,
)
from experiments.costs.workload import Workload, gpu_hours, sequence_flops

GIB, MIB = 2**30, 2**20
A100 = 312e12
"""Operations per second in bfloat16, from NVIDIA's data sheet of the A100."""
UTILIZATION = 0.35
GENERATED = 32
"""Batch size and tokens of an answer in the column of generation."""
SIZES = {name: sizes["train"].items for name, sizes in BENCHMARK.sizes.items()}
# SK-VG and VizWiz are trained for 5 epochs, IconQA is repeated 5 times
SEEN = sum(n * (5 if name in ("SK-VG", "VizWiz", "IconQA") else 1) for name, n in SIZES.items())
WORKLOADS = (
    Workload(
        name="the nine tasks of D-MoLE",
        tasks=9,
        seen=SEEN,
        distinct=sum(SIZES.values()),
        tested=9 * 5000,
        answer_tokens=16,
        source="train sizes and epochs of the released code; 5,000 test samples a task assumed",
    ),
    Workload(
        name="eight tasks of CoIN's size",
        tasks=8,
        seen=8 * 70_000,
        distinct=8 * 70_000,
        tested=8 * 5000,
        answer_tokens=16,
        source="assumed: 70,000 training and 5,000 test samples a task",
    ),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def training_row(model: ModelSizes, load: Load) -> list[str]:
    weights = base_parameters(model) * load.base_bytes
    experts = task_parameters(model, load)
    state = training_state_bytes(experts)
    loss = loss_bytes(model, load.batch * load.answer_tokens, load.base_bytes)
    full = training_activation_bytes(model, load)
    less = training_activation_bytes(model, load, recompute=True)
    return [
        model.name,
        f"{base_parameters(model) / 1e9:.2f}",
        gib(weights),
        f"{experts / 1e6:.1f}",
        f"{state / GIB:.2f}",
        f"{loss / GIB:.2f}",
        gib(full),
        gib(less),
        gib(weights + state + loss + full),
        gib(weights + state + loss + less),
    ]


def other_row(model: ModelSizes, load: Load) -> list[str]:
    weights = base_parameters(model) * load.base_bytes
    tokens = model.image_tokens + load.text_tokens
    running = proxy_activation_bytes(model, load)
    running += loss_bytes(model, load.batch * load.answer_tokens, load.base_bytes)
    summed, norms = (proxy_gradient_bytes(model, summed=value) for value in (True, False))
    cache = cache_bytes(model, GENERATED, tokens + GENERATED, load.base_bytes)
    return [
        model.name,
        gib(running),
        gib(summed),
        gib(weights + running + summed),
        gib(weights + running + norms),
        gib(cache),
        gib(weights + cache),
        f"{FP32 * task_parameters(model, load) / MIB:.0f}",
        f"{router_bytes(model) / MIB:.1f}",
    ]


def hours_row(model: ModelSizes, load: Load, workload: Workload) -> list[str]:
    work = sequence_flops(model, load, workload)
    again = sequence_flops(model, load, workload, recompute=True)["train"] - work["train"]
    cells = [f"{gpu_hours(work[phase], A100, UTILIZATION):,.1f}" for phase in work]
    total, more = (gpu_hours(w, A100, UTILIZATION) for w in (sum(work.values()), again))
    return [model.name, *cells, f"{total:,.0f}", f"{total + more:,.0f}"]


def report(load: Load) -> str:
    """Return all tables as Markdown."""
    parts = [
        f"Training, GiB on each GPU ({load.batch} samples a step, one picture and "
        f"{load.text_tokens} tokens of text each, {load.answer_tokens} of them the answer; rank "
        f"{load.rank} on {load.share:.0%} of the blocks; base in bfloat16):",
        table(
            (
                *("base model", "parameters, 10^9", "weights", "trained, 10^6", "their state"),
                *("loss", "activations", "recomputed", "step", "step, recomputed"),
            ),
            [training_row(model, load) for model in LARGE],
        ),
        f"Proxy pass with the same batch, and generation for {GENERATED} samples of {GENERATED} "
        "new tokens, GiB; files of a task, MiB:",
        table(
            (
                *("base model", "activations and loss", "kept gradients", "proxy pass, `sum`"),
                *("proxy pass, `fisher`", "cache", "generation", "expert file", "router file"),
            ),
            [other_row(model, load) for model in LARGE],
        ),
    ]
    for workload in WORKLOADS:
        parts += [
            f"GPU hours for {workload.name}, {workload.seen:,} samples trained on "
            f"({workload.source}), on A100s at {UTILIZATION:.0%} of {A100 / 1e12:.0f} TFLOP/s:",
            table(
                (
                    *("base model", "train", "allocate", "embed", "evaluate", "all"),
                    "all, activations recomputed",
                ),
                [hours_row(model, load, workload) for model in LARGE],
            ),
        ]
    parts.append("\n".join(f"- {model.name}: {model.source}" for model in LARGE))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    defaults = Load()
    for name in ("batch", "text_tokens", "answer_tokens", "rank"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--share", type=float, default=defaults.share, help="default: %(default)s")
    print(report(replace(defaults, **vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
