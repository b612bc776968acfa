"""Methods under ``deterministic: true``: torch refuses kernels that have no such form."""

from __future__ import annotations

from collections.abc import Iterator

from dmole.messages import one_line
from experiments.gpu.common import Row, Setting
from experiments.gpu.runs import RunBuilder, tasks, unequal

METHODS = ("dmole", "dynmole", "branchlora", "moe_cl")
"""The published rule, an EntropyGate, branches, and experts by token."""


def determinism(setting: Setting, only: tuple[str, ...] = METHODS) -> Iterator[Row]:
    """Yield whether each method runs, and equals its repetition bit for bit."""
    builder = RunBuilder(setting)
    data = {"tasks": tasks(("paint", "count"), 16, 4, 2), "batch_size": 4, "eval_batch_size": 8}
    for method in only:
        try:
            first, second = (
                builder.build(
                    f"{method}_{turn}", data, method=method, trainer={"deterministic": True}
                ).fit()
                for turn in range(2)
            )
        except RuntimeError as error:
            yield f"{method}: error", one_line(error), ""
        else:
            yield f"{method}: unequal results of two runs", unequal(first, second), "bit for bit"
