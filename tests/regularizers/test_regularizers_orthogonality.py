from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dmole.regularizers import normalized_overlap, overlap


def orthonormal(rank: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, rank)).Q.T


def test_equal_orthonormal_rows_overlap_by_their_number_or_by_one() -> None:
    rows = orthonormal(4, 16)
    assert_close(overlap(rows, rows), torch.tensor(4.0), rtol=0, atol=1e-4)
    assert_close(normalized_overlap(rows, [rows]), torch.tensor(1.0))


def test_disjoint_supports_overlap_nothing_and_get_no_gradient() -> None:
    current = torch.cat([torch.randn(2, 4), torch.zeros(2, 4)], dim=1).requires_grad_()
    past = torch.cat([torch.zeros(3, 4), torch.randn(3, 4)], dim=1)
    for loss in (overlap(current, past), normalized_overlap(current, [past, past])):
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, current)
        assert not gradient.any()


def test_the_normalized_form_ignores_sizes_and_the_number_of_copies() -> None:
    current, past = torch.randn(3, 8), torch.randn(5, 8)
    once = normalized_overlap(current, [past])
    assert_close(normalized_overlap(1e3 * current, [1e-3 * past] * 4), once)
    assert_close(overlap(current, torch.cat([past] * 4)), 4 * overlap(current, past))


def test_the_normalized_form_stays_in_the_unit_interval_for_orthogonal_past_rows() -> None:
    for _ in range(50):
        past = [orthonormal(rank, 6) for rank in (1, 3, 6)]
        assert 0 <= normalized_overlap(torch.randn(4, 6), past) <= 1 + 1e-6
    span = orthonormal(6, 6)
    assert_close(normalized_overlap(torch.randn(2, 6), [span]), torch.tensor(1.0))


def test_repeated_past_rows_exceed_one() -> None:
    row = torch.ones(1, 4)
    assert_close(normalized_overlap(row.expand(2, 4), [row.expand(3, 4)]), torch.tensor(3.0))


def test_zero_rows_overlap_nothing_with_a_finite_gradient() -> None:
    current = torch.zeros(2, 4, requires_grad=True)
    loss = normalized_overlap(current, [torch.randn(3, 4), torch.zeros(1, 4)])
    loss.backward()
    assert loss == 0
    assert current.grad.isfinite().all()


def test_without_past_experts_there_is_nothing_to_overlap() -> None:
    current = torch.randn(2, 4, requires_grad=True)
    assert overlap(current, torch.empty(0, 4)) == 0
    normalized_overlap(current, []).backward()
    assert not current.grad.any()


def test_past_rows_get_no_gradient() -> None:
    current, past = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    (overlap(current, past) + normalized_overlap(current, [past])).backward()
    assert past.grad is None
    assert current.grad.any()


def test_mixed_precision_does_not_reach_the_products() -> None:
    current, past = torch.randn(4, 64), torch.randn(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = overlap(current, past), normalized_overlap(current, [past])
    assert torch.equal(low[0], overlap(current, past))
    assert torch.equal(low[1], normalized_overlap(current, [past]))
    assert overlap(current.bfloat16(), past.bfloat16()).dtype == torch.float32


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(2, 5\)"):
        overlap(torch.ones(2, 4), torch.ones(2, 5))
