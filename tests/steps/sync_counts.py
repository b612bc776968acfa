"""Prints the waits of the host in training and decoding steps, by number of experts, as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from dmole.module import ContinualModule
from experiments.gpu.common import Setting
from experiments.gpu.routed import training_step
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


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    modules = {size: tiny_module(HOST, int(size)) for size in sys.argv[1:]}
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import fake_accelerator  # after the models are built, since transformers would use it for them

    print(json.dumps({size: counts(module, fake_accelerator) for size, module in modules.items()}))
