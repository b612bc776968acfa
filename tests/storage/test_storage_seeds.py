"""Seeds stay what they are: a change would change the results of every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dmole.storage.seeds import derive_seed, expert_seed, router_seed


def test_seeds_have_recorded_values() -> None:
    assert derive_seed(0, "replay", "ocr") == 6780916568738437563
    assert expert_seed(0, "a", "x") == 4224559700233875062
    assert router_seed(0, "red") == 7078890864260096558


@pytest.mark.parametrize("derive", [derive_seed, expert_seed, router_seed])
def test_seeds_differ_for_different_parts_and_fit_a_generator(derive: Callable[..., int]) -> None:
    seeds = [derive(seed, name) for seed in (0, 1) for name in ("a", "b")]
    assert len(set(seeds)) == 4
    for seed in seeds:
        torch.Generator().manual_seed(seed)
