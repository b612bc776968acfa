"""Time and memory of a routed linear, compared with a plain linear and PEFT.

One thread, fp32, forward and backward pass over 4 sequences of 128 tokens, one expert in training.
PEFT computes all its adapters for every sample. The routed linear also supports the routing of
D-MoLE: at most two experts per sample, selected for each sample. Times are medians of interleaved
repetitions. Memory is the peak of bytes in live tensors between two operators, without weights and
input.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmole.experts import ExpertLibrary, Gates

SAMPLES, TOKENS, RANK, ALPHA = 4, 128, 8, 16.0
WIDTHS, EXPERTS, REPETITIONS = (512, 1024), (1, 2, 9), 25


class PeakMemory(TorchDispatchMode):
    """Tracks the storages that operators create."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.before: set[StorageWeakRef] = set()
        self.peak = 0

    def ignore(self, *tensors: Tensor) -> None:
        """Exclude tensors that exist already."""
        self.before.update(StorageWeakRef(t.untyped_storage()) for t in tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run an operator and count the bytes of live storages after it."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key = StorageWeakRef(storage)
                if key not in self.before:
                    self.alive[key] = storage.nbytes()
        self.alive = {key: size for key, size in self.alive.items() if not key.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def plain(width: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, width, bias=False).requires_grad_(False)


def routed(width: int, experts: int, active: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model = nn.ModuleDict({"layer": plain(width)})
    library = ExpertLibrary(model, lambda _: "language")
    names = [f"task{i}" for i in range(experts)]
    for name in names:
        library.add(name, {"layer": RANK}, {"layer": ALPHA})
        for _, expert in library.experts(name):
            nn.init.normal_(cast("Tensor", expert.lora_b), std=0.02)
    library.train_only(names[-1])
    weights = torch.zeros(SAMPLES, experts)
    for sample in range(SAMPLES):  # the expert in training and different partners
        weights[sample, experts - 1] = 1.0
        for i in range(active - 1):
            weights[sample, (sample + i) % (experts - 1)] = 1.0

    gates = Gates(names, weights)  # made once per batch, for all linears

    def forward(x: Tensor) -> Tensor:
        with library.context.use(gates):
            result: Tensor = model["layer"](x)
        return result

    return model, forward


def peft(width: int, experts: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["0"])
    names = [f"task{i}" for i in range(experts)]
    model = LoraModel(nn.Sequential(plain(width)), config, names[0])
    for name in names[1:]:
        model.peft_config[name] = config
        model.inject_adapter(model.model, name)
    model.set_adapter(names)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in key and f".{names[-1]}." in key)
    return model, model


def step(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    forward(x).sum().backward()
    seconds = time.perf_counter() - start
    x.grad = None
    return seconds


def peak(model: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    model.zero_grad()
    memory = PeakMemory()
    memory.ignore(x, *model.parameters())
    with memory:
        step(forward, x)
    return memory.peak / 2**20


def compare(width: int, experts: int) -> None:
    base = plain(width)
    variants: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "linear": (base, base),
        "routed, 2 per sample": routed(width, experts, min(2, experts)),
        "routed, all": routed(width, experts, experts),
        "peft, all": peft(width, experts),
    }
    x = torch.randn(SAMPLES, TOKENS, width, requires_grad=True)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(REPETITIONS):
        for name, (_, forward) in variants.items():
            times[name].append(step(forward, x))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, (model, forward) in variants.items():
        print(
            f"{width:>6} {experts:>8}  {name:<20} {1e3 * medians[name]:>8.2f} "
            f"{medians[name] / medians['linear']:>7.2f} {peak(model, forward, x):>9.1f}"
        )


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'width':>6} {'experts':>8}  {'linear':<20} {'ms':>8} {'ratio':>7} {'peak MiB':>9}")
    for width in WIDTHS:
        for experts in EXPERTS:
            compare(width, experts)


if __name__ == "__main__":
    main()
