"""Both ways to add the experts of a batch give the same sum; the cheaper one is taken."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dmole.experts.products import ByRow, Masked, Part, Sharing

IN, OUT = 6, 5


def parts(*ranks: int) -> list[Part]:
    draw = torch.Generator().manual_seed(0)
    return [
        Part(
            torch.randn(rank, IN, generator=draw),
            torch.randn(OUT, rank, generator=draw),
            scaling=1.0 + rank,
        )
        for rank in ranks
    ]


def masked(experts: list[Part], weights: torch.Tensor) -> Masked:
    """Return the product in which each row has its weight on the channels of each expert."""
    columns = [
        weights[:, i, None].expand(-1, len(part.down)) * part.scaling
        for i, part in enumerate(experts)
    ]
    down, up = torch.cat([p.down for p in experts]), torch.cat([p.up for p in experts], dim=1)
    return Masked(down.t(), up.t(), torch.cat(columns, dim=1)[:, None], 1.0)


@pytest.mark.parametrize("tokens", [1, 7])
def test_rows_with_their_own_weights_get_the_masked_sum(tokens: int) -> None:
    experts = parts(2, 3, 1)
    combinations = [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    index = torch.tensor([2, 0, 1, 3, 2])
    x, base = torch.randn(5, tokens, IN), torch.randn(5, tokens, OUT)
    rows, all_rows = base.clone(), base.clone()
    Sharing(combinations, index).by_row(experts).add_to(rows, x)
    masked(experts, torch.tensor(combinations)[index]).add_to(all_rows, x)
    assert_close(rows, all_rows, rtol=1e-5, atol=1e-5)
    assert torch.equal(rows[2], base[2])  # a row without experts is the base to the bit


@pytest.mark.parametrize(
    ("rows", "experts", "tokens", "cheaper"),
    [
        (8, 8, 1, True),  # each row has an expert of its own
        (32, 8, 1, False),  # four rows share each expert: their weights would be read four times
        (32, 8, 50, True),  # a prompt: what is computed counts
        (100, 2, 1, False),
        (4, 1, 50, False),  # nothing to leave out
    ],
)
def test_the_way_that_costs_less_is_taken(
    rows: int, experts: int, tokens: int, cheaper: bool
) -> None:
    weights = torch.eye(experts).tolist()
    sharing = Sharing(weights, torch.arange(rows) % experts)
    assert sharing.is_cheaper(parts(*[8] * experts), rows * tokens) is cheaper


def test_the_weights_of_rows_have_the_channels_of_the_largest_combination() -> None:
    product = Sharing([[1.0, 0.0], [0.0, 2.0]], torch.tensor([0, 1, 1])).by_row(parts(2, 3))
    assert isinstance(product, ByRow)
    assert product.down.shape == (3, IN, 3)
    assert not product.down[0, :, 2].any()
    assert_close(product.up[1], parts(2, 3)[1].up.t() * 2.0 * 4.0)
