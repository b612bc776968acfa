from __future__ import annotations

import doctest

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import dmole.routing.task_keys
from dmole.routing import fit_key, key_scores


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(dmole.routing.task_keys)
    assert result.attempted
    assert result.failed == 0


def test_gradient_descent_on_the_cosine_loss_ends_at_the_closed_form() -> None:
    rows = torch.randn(20, 6, dtype=torch.float64) * torch.rand(20, 1) * 10 + 0.3
    key = torch.randn(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([key], lr=0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        (1 - cosine_similarity(rows, key.unsqueeze(0))).sum().backward()
        optimizer.step()
    assert_close(key / key.norm(), fit_key(rows).double(), rtol=0, atol=1e-5)


def test_no_other_direction_has_a_lower_loss() -> None:
    rows = torch.randn(9, 4)
    best = key_scores(rows, fit_key(rows)[None]).sum()
    assert (key_scores(rows, torch.randn(500, 4)).sum(dim=0) <= best + 1e-5).all()


def test_a_key_has_length_one_and_ignores_the_lengths_of_rows() -> None:
    rows = torch.randn(7, 5)
    key = fit_key(rows)
    assert_close(key.norm(), torch.tensor(1.0))
    assert_close(fit_key(rows * torch.rand(7, 1).add(0.1)), key)


def test_scores_are_cosines() -> None:
    rows, keys = torch.randn(3, 5), torch.randn(4, 5)
    expected = cosine_similarity(rows[:, None], keys[None], dim=-1)
    assert_close(key_scores(rows, keys), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(key_scores(rows, keys), expected)


def test_samples_of_a_task_score_highest_on_its_key() -> None:
    centres = 3 * torch.eye(3, 8)
    tasks = [centre + 0.3 * torch.randn(10, 8) for centre in centres]
    keys = torch.stack([fit_key(rows) for rows in tasks])
    for index, rows in enumerate(tasks):
        assert (key_scores(rows, keys).argmax(dim=1) == index).all()


def test_a_side_that_is_missing_everywhere_speaks_for_no_task() -> None:
    key = fit_key(torch.zeros(3, 4))
    assert not key.any()
    assert key_scores(torch.randn(2, 4), key[None]).tolist() == [[0], [0]]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(0, 4\)"):
        fit_key(torch.empty(0, 4))
    with pytest.raises(ValueError, match=r"got \(1, 3\) and \(1, 4\)"):
        key_scores(torch.ones(1, 3), torch.ones(1, 4))
