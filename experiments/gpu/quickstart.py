"""The quickstart on the GPU and on the CPU, twice on the GPU, and killed and resumed there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmole.callbacks import ContinualCallback
from experiments.gpu.common import Row, Setting
from experiments.gpu.runs import RunBuilder, compare, tasks, unequal

TASKS = ("paint", "count", "caption")


class KilledError(Exception):
    """Stands for the end of a process."""


class KillAfter(ContinualCallback):
    """Ends a run after an optimizer step, before that step is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Raise at the step."""
        if trainer.global_step == self.step:
            raise KilledError


def quickstart(setting: Setting, train: int = 128, test: int = 60) -> Iterator[Row]:
    """Yield how runs of the same seed differ between devices and between repetitions."""
    data = {"tasks": tasks(TASKS, train, test, 8), "eval_batch_size": test}

    def fit(name: str, accelerator: str) -> tuple[Path, float]:
        builder = RunBuilder(replace(setting, accelerator=accelerator))
        start = time.perf_counter()
        folder = builder.build(name, data).fit()
        return folder, time.perf_counter() - start

    device, spent = fit("first", setting.accelerator)
    yield f"run on {setting.accelerator}, s", round(spent, 1), "in fp32, three tasks"
    host, spent = fit("host", "cpu")
    yield "run on cpu, s", round(spent, 1), "the same"
    for what, value in compare(device, host):
        yield f"{setting.accelerator} and cpu: {what}", value, "fp32, same seed"
    again, _ = fit("again", setting.accelerator)
    yield "two runs on the device: unequal results", unequal(device, again), "bit for bit"


def resume(setting: Setting, train: int = 64, test: int = 16) -> Iterator[Row]:
    """Yield whether a run that was killed in the middle of a stage ends as one that was not."""
    data = {"tasks": tasks(TASKS[:2], train, test), "eval_batch_size": test}
    steps = train // 8
    saving = {"checkpoint_every_n_steps": 2, "deterministic": True}
    whole = RunBuilder(setting).build("whole", data, trainer=saving).fit()
    killed = RunBuilder(setting).build(
        "killed", data, trainer=saving, callbacks=[KillAfter(steps + steps // 2 + 1)]
    )
    try:
        killed.fit()
    except KilledError:
        yield "killed at step", killed.trainer.global_step, "in the middle of the second task"
    rest = RunBuilder(setting).build("killed", data, trainer=saving).fit("last")
    yield "resumed run: unequal results", unequal(rest, whole), "bit for bit, `deterministic: true`"
