"""random generators continue where they were, through a file that executes nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from dmole.run.random_state import random_state, restore_random_state


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]


def test_all_generators_repeat_their_draws_after_a_trip_through_a_file(tmp_path: Path) -> None:
    draws()  # leaves a second Gaussian waiting in two of the generators
    torch.save(random_state(), tmp_path / "state")
    first = draws()
    assert draws() != first
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draws() == first
