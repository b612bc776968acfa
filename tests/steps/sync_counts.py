"""Prints the waits and uploads of the host in training and decoding steps, as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from dmole.data.window import windows
from dmole.module import ContinualModule
from dmole.regularizers import Distillation, ElasticWeights, Regularizer
from dmole.regularizers.base import training_parameters
from dmole.regularizers.terms import Terms
from experiments.gpu.common import Setting
from experiments.gpu.routed import forced_gates, training_step
from experiments.gpu.syncs import answering, tiny_batch, tiny_module

HOST = Setting("cpu", Path())


def counts(module: ContinualModule, fake: ModuleType) -> dict[str, dict[str, int]]:
    """Return the waits by line of the package: of a step, and of two decoded tokens."""

    def waits(work: Callable[[], object]) -> Counter[str]:
        fake.WAITED.clear()
        work()
        return Counter(fake.WAITED)

    batch, prompts = (tiny_batch(HOST, module, 2, train=train) for train in (True, False))
    with fake.OnDevice():
        module.to(fake.DEVICE)
        batch, prompts = batch.to(fake.DEVICE), prompts.to(fake.DEVICE)
        step = training_step(module, batch)
        found = {"step": waits(step)}
        module.eval()
        few, more = (waits(answering(module, prompts, tokens)) for tokens in (1, 3))
    return {**found, "prefill": few, "decode": more - few}


def elements(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def term_copies(fake: ModuleType, term: Regularizer, state: list[str]) -> dict[str, object]:
    """Return the size of a term's state, and what two steps of two micro-batches wait and upload.

    Args:
        fake: The device.
        term: A term that is in a later stage.
        state: Prefixes of the names of its state, each with a tensor of every parameter.
    """
    module = tiny_module(HOST, 1)
    (expert,) = module.experts
    current = training_parameters(module.library, [expert])
    term.load_extra_tensors(
        {f"{prefix}{k}": torch.rand_like(p) for prefix in state for k, p in current.items()}
    )
    module.regularizers = Terms([term])
    module._trainer.accumulate_grad_batches = 2
    halves = [replace(tiny_batch(HOST, module, 2, train=True), window=None) for _ in range(2)]
    waits, uploads = [], []
    with fake.OnDevice():
        module.to(fake.DEVICE)
        for batch in [*windows(halves, 2, 0, 2)] * 2:
            moved = batch.to(fake.DEVICE)
            fake.WAITED.clear(), fake.UPLOADED.clear()
            module.training_step(moved, 0).backward()
            waits.append(sum("regularizers/" in line for line in fake.WAITED))
            uploads.append(sum(fake.UPLOADED.values()))
    return {"state": elements(term.extra_tensors()), "waits": waits, "uploads": uploads}


def past_copies(fake: ModuleType) -> dict[str, object]:
    """Return what answers wait for and upload, where one of three past experts stays loaded."""
    module = tiny_module(HOST, 4, past_experts_on_device=1)
    module.eval()
    prompts = tiny_batch(HOST, module, 2, train=False)
    waits, uploads = [], []
    with fake.OnDevice():
        module.to(fake.DEVICE)
        prompts = prompts.to(fake.DEVICE)
        module.setup("test")
        for name in ("task0", "task1", "task1", "task0"):
            gates = forced_gates(module, prompts, [name])
            fake.WAITED.clear(), fake.UPLOADED.clear()
            module.library.past.trim()
            with module.library.context.use(gates):
                module.backbone.generate_tokens(prompts.inputs, 1, min_new_tokens=1)
            waits.append(fake.WAITED.total())
            uploads.append(fake.UPLOADED.total())
    return {
        "sizes": {name: module.library.count(name) for name in module.experts},
        "waits": waits,
        "uploads": uploads,
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    modules = {size: tiny_module(HOST, int(size)) for size in sys.argv[1:]}
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import fake_accelerator  # after the models are built, since transformers would use it for them

    found = {size: counts(module, fake_accelerator) for size, module in modules.items()}
    elastic = term_copies(fake_accelerator, ElasticWeights(), ["0/anchor/", "0/importance/"])
    teacher = term_copies(fake_accelerator, Distillation(), [""])
    terms = {"elastic": elastic, "teacher": teacher}
    past = past_copies(fake_accelerator)
    print(json.dumps({"steps": found, "terms": terms, "past": past}))
