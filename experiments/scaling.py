"""Memory and GPU hours for large base models, reckoned from their shapes without a run.

Prints the tables of docs/scaling.md. The formulas are those of ``dmole plan`` (`dmole.planning`);
tests compare them with measurements of tiny models.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dmole.cli.plan import RESERVED, read_config
from dmole.planning import activations, memory
from dmole.planning.advice import advise
from dmole.planning.config import read_setup
from dmole.planning.hardware import GPUS, UTILIZATION, Gpu
from dmole.planning.hours import hours
from dmole.planning.reckoning import GIB, Reckoning
from dmole.planning.setup import Lengths, Setup
from dmole.planning.shape import model_shape

MODELS = {
    "LLaVA-1.5-7B": "llava-hf/llava-1.5-7b-hf",
    "LLaVA-1.5-13B": "llava-hf/llava-1.5-13b-hf",
    "Qwen2.5-VL-32B": "Qwen/Qwen2.5-VL-32B-Instruct",
    "Qwen2.5-VL-72B": "Qwen/Qwen2.5-VL-72B-Instruct",
}
PIXELS = {"max_pixels": 448 * 448}
"""Images of the Qwen models: 256 tokens each."""
MACHINES = {
    "1x24gb": "l4-24gb",
    "8x24gb": "l4-24gb",
    "8x80gb": "a100-80gb",
    "64x80gb": "h100-80gb",
}
PHASES = ("proxy pass", "training step", "evaluation", "embedding")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def on_model(setup: Setup, name: str) -> Reckoning:
    """Return the reckoning of a setup with another base model."""
    settings = PIXELS if name.startswith("Qwen") else {}
    changed = replace(setup, name_or_path=MODELS[name], image_settings=settings, patterns=None)
    return Reckoning(model_shape(MODELS[name]), changed, Lengths())


def totals(reckoning: Reckoning) -> dict[str, float]:
    return {phase.name: phase.total for phase in reckoning.phases()}


def proxy_before(reckoning: Reckoning) -> float:
    """Return the bytes of a proxy pass at commit 21c6ae4: nothing recomputed, gradients whole."""
    load = reckoning.load(reckoning.setup.batch_size)
    return (
        reckoning.whole_base
        + memory.FP32 * reckoning.experts.past
        + activations.proxy_activation_bytes(reckoning.shape, load)
        + memory.loss_bytes(reckoning.shape, load)
        + memory.proxy_gradient_bytes(reckoning.shape)
        + memory.largest_gradient_bytes(reckoning.shape)
    )


def phase_rows(setup: Setup, name: str) -> list[list[str]]:
    """Return the rows of a model: at commit 21c6ae4, and today on one GPU and on eight."""
    old = replace(setup, devices=8, batch_size=14, eval_batch_size=16, eval_tokens_per_batch=None)
    old = replace(old, past_experts_on_device=None)
    before = totals(on_model(old, name)) | {"proxy pass": proxy_before(on_model(old, name))}
    found = {
        "21c6ae4": before,
        "one GPU": totals(on_model(replace(setup, devices=1), name)),
        "8, `ddp`": totals(on_model(replace(setup, devices=8), name)),
        "8, `sharded_base`": totals(
            on_model(replace(setup, devices=8, sharded=True, gathers=False), name)
        ),
    }
    return [
        [f"{name}, {how}", *(gib(row[phase]) for phase in PHASES)] for how, row in found.items()
    ]


def changes(reckoning: Reckoning, limit: float) -> str:
    """Return the first change that suffices for each phase that does not fit."""
    found: dict[str, str] = {}
    for advice in advise(reckoning, limit):
        if advice.fits:
            found.setdefault(advice.phase, advice.change)
    lacking = [p.name for p in reckoning.phases() if p.total > limit and p.name not in found]
    texts = [f"`{change}`" for change in dict.fromkeys(found.values())]
    return "; ".join([*texts, *(f"{name}: too large" for name in lacking)]) or "fits"


def machine_rows(configs: Mapping[str, Setup], machine: str) -> list[list[str]]:
    gpu = GPUS[MACHINES[machine]]
    limit = (1 - RESERVED) * gpu.gib * GIB
    rows = []
    for name in ("LLaVA-1.5-7B", "LLaVA-1.5-13B", "Qwen2.5-VL-72B"):
        reckoning = on_model(configs[machine], name)
        found = totals(reckoning)
        cells = [gib(found[phase]) for phase in PHASES]
        rows.append([f"{machine}, {name}", *cells, changes(reckoning, limit)])
    return rows


def hours_row(setup: Setup, name: str, gpu: Gpu) -> list[str]:
    found = hours(on_model(replace(setup, devices=1), name), gpu, UTILIZATION)
    return [name, *(f"{value:,.1f}" for value in found.values()), f"{sum(found.values()):,.0f}"]


def report() -> str:
    """Return all tables as Markdown."""
    coin = read_setup(read_config(["--config", "coin.yaml"]))
    nine = read_setup(read_config(["--config", "cmit.yaml"]))
    machines = {
        name: read_setup(
            read_config(["--config", "coin.yaml", "--config", f"hardware/{name}.yaml"])
        )
        for name in MACHINES
    }
    gpu = GPUS["a100-80gb"]
    parts = [
        "`coin.yaml` with larger base models, GiB of a GPU at the last of eight tasks (rank 128, "
        "one picture and 128 tokens of text a sample):",
        table(
            ("base model, GPUs", *PHASES),
            [row for name in MODELS for row in phase_rows(coin, name)],
        ),
        "`coin.yaml` with the files of `configs/hardware`, GiB of a GPU, and what `dmole plan` "
        "advises for each phase that does not fit:",
        table(
            ("machine, base model", *PHASES, "to change"),
            [row for machine in MACHINES for row in machine_rows(machines, machine)],
        ),
    ]
    for title, setup in (("CoIN", coin), ("the nine tasks of D-MoLE", nine)):
        seen = sum(task.train * task.passes for task in setup.tasks)
        tested = sum(task.test for task in setup.tasks)
        phases = hours(on_model(setup, "LLaVA-1.5-7B"), gpu, UTILIZATION)
        parts += [
            f"GPU hours for {title}, {seen:,} samples trained on and {tested:,} test samples, on "
            f"A100s at {UTILIZATION:.0%} of {gpu.teraflops:g} TFLOP/s:",
            table(("base model", *phases, "all"), [hours_row(setup, name, gpu) for name in MODELS]),
        ]
    parts.append(
        "Of tasks without a published size, 70,000 training and 5,000 test samples are assumed, of "
        "those of CoIN 61,000 test samples."
    )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args(arguments)
    print(report())


if __name__ == "__main__":
    main()
