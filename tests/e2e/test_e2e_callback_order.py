"""The order of callbacks changes nothing of what a run learns, finds out and writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmole.callbacks import ContinualCallback, StageCheckpoint
from dmole.regularizers import Distillation, Orthogonality


class CutError(Exception):
    """Stands for whatever ends a process."""


class CutAfter(ContinualCallback):
    """Ends the run at a step, before that step is saved."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            raise CutError


def build(recipe: Any, folder: Path, *more: ContinualCallback) -> Any:
    """Return a run whose callbacks all have something to do."""
    regularizers = [Distillation(), Orthogonality()]
    return recipe(
        callbacks=more,
        curriculum="online",
        model={"regularizers": regularizers, "dropout": 0.2},
        trainer={"checkpoint_every_n_steps": 1},
    ).build(folder)


@pytest.fixture(scope="module")
def whole(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    run: Path = build(recipe, tmp_path_factory.mktemp("whole")).fit()
    return run


def reverse(callbacks: list[Any]) -> None:
    callbacks.reverse()


def shuffle(callbacks: list[Any]) -> None:
    random.Random(1).shuffle(callbacks)


Order = Callable[[list[Any]], None]


@pytest.mark.parametrize("order", [reverse, shuffle])
def test_callbacks_in_another_order_leave_the_same_run(
    recipe: Any,
    whole: Path,
    tmp_path: Path,
    digests: Callable[[Path], dict[str, str]],
    order: Order,
) -> None:
    sequence = build(recipe, tmp_path)
    before = list(sequence.trainer.callbacks)
    order(sequence.trainer.callbacks)
    assert sequence.trainer.callbacks != before
    assert digests(sequence.fit()) == digests(whole)


def test_a_run_is_resumed_with_callbacks_in_another_order(
    recipe: Any, whole: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    cut = build(recipe, tmp_path, CutAfter())
    shuffled: list[Any] = cut.trainer.callbacks
    last = next(callback for callback in shuffled if isinstance(callback, StageCheckpoint))
    shuffled.remove(last)
    reverse(shuffled)
    shuffled.append(last)  # as Lightning orders them, whatever the user gives
    with pytest.raises(CutError):
        cut.fit()
    torch.manual_seed(99)  # another process has drawn other numbers
    assert digests(build(recipe, tmp_path).fit("auto")) == digests(whole)
