"""Both ways to add the experts of a batch give the same sum; the cheaper one is taken."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dmole.experts.products import Masked, RowChannels

IN, OUT = 6, 5


def weights_of(*ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return down- and up-projections of experts with these ranks, joined."""
    draw = torch.Generator().manual_seed(0)
    down = torch.randn(sum(ranks), IN, generator=draw)
    return down, torch.randn(sum(ranks), OUT, generator=draw)


@pytest.mark.parametrize("tokens", [1, 7])
def test_rows_with_their_own_channels_get_the_masked_sum(tokens: int) -> None:
    ranks, scalings = [2, 3, 1], [3.0, 4.0, 0.5]
    gates = torch.tensor([[0, 1.0, 0], [1, 0, 0.5], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    down, up = weights_of(*ranks)
    factors = (gates * torch.tensor(scalings)).repeat_interleave(torch.tensor(ranks), dim=1)
    x, base = torch.randn(5, tokens, IN), torch.randn(5, tokens, OUT)
    masked = Masked(down.t(), up, factors[:, None], 1.0).add_to(base.clone(), x)
    own = RowChannels.of(gates.tolist(), ranks, scalings).take(down, up).add_to(base.clone(), x)
    assert_close(own, masked, rtol=1e-5, atol=1e-5)
    assert torch.equal(own[2], base[2])  # a row without experts is the base to the bit


def test_rows_hold_as_many_channels_as_the_row_with_most() -> None:
    rows = RowChannels.of([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [2, 3], [1.0, 4.0])
    assert rows.index.tolist() == [[0, 1, 0], [2, 3, 4], [0, 0, 0]]
    assert rows.factors[..., 0].tolist() == [[1, 1, 0], [8, 8, 8], [0, 0, 0]]
    assert rows.channels == 5


@pytest.mark.parametrize(
    ("rows", "experts", "tokens", "cheaper"),
    [
        (8, 8, 1, True),  # each row has an expert of its own
        (32, 8, 1, False),  # four rows share each expert: its weights would be read four times
        (32, 8, 50, True),  # a prompt: what is computed counts
        (100, 2, 1, False),
        (4, 1, 50, False),  # nothing to leave out
    ],
)
def test_the_way_that_costs_less_is_taken(
    rows: int, experts: int, tokens: int, cheaper: bool
) -> None:
    gates = torch.eye(experts)[torch.arange(rows) % experts]
    channels = RowChannels.of(gates.tolist(), [8] * experts, [2.0] * experts)
    assert channels.is_cheaper(rows * tokens) is cheaper
