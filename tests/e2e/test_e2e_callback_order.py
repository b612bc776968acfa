"""The order of callbacks changes nothing of what a run learns, finds out and writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, Sequenced

from dmole.callbacks import ContinualCallback, StageCheckpoint
from dmole.regularizers import Distillation, Orthogonality


def build(folder: Path, *more: ContinualCallback) -> Sequenced:
    """Return a run whose callbacks all have something to do."""
    return Recipe(
        callbacks=more,
        curriculum="online",
        model={"regularizers": [Distillation(), Orthogonality()], "dropout": 0.2},
        trainer={"checkpoint_every_n_steps": 1},
    ).build(folder)


def callbacks_of(sequence: Sequenced) -> list[Any]:
    return sequence.trainer.sequence.callbacks


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return build(tmp_path_factory.mktemp("whole")).fit()


def reverse(callbacks: list[Any]) -> None:
    callbacks.reverse()


def shuffle(callbacks: list[Any]) -> None:
    random.Random(1).shuffle(callbacks)


@pytest.mark.slow
@pytest.mark.parametrize("order", [reverse, pytest.param(shuffle, marks=pytest.mark.slow)])
def test_callbacks_in_another_order_leave_the_same_run(
    whole: Path, tmp_path: Path, order: Callable[[list[Any]], None]
) -> None:
    sequence = build(tmp_path)
    before = list(callbacks_of(sequence))
    order(callbacks_of(sequence))
    assert callbacks_of(sequence) != before
    assert run_digests(sequence.fit()) == run_digests(whole)


@pytest.mark.slow
def test_a_run_is_resumed_with_callbacks_in_another_order(whole: Path, tmp_path: Path) -> None:
    cut = build(tmp_path, CutAfter(3))
    callbacks = callbacks_of(cut)
    last = cut.trainer.sequence.callback_of(StageCheckpoint)
    callbacks.remove(last)
    reverse(callbacks)
    callbacks.append(last)  # as Lightning orders them, whatever the user gives
    with pytest.raises(CutError):
        cut.fit()
    torch.manual_seed(99)  # another process has drawn other numbers
    assert run_digests(build(tmp_path).fit("auto")) == run_digests(whole)
