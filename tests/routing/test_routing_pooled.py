"""Tasks as Gaussians that share one covariance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dmole.routing import AutoencoderRouter, RouteQuery
from dmole.routing.pooled import SHRINKAGE, PooledGaussian, TaskMoments

TASKS = ("one", "two", "three")
WIDTH = 24


def alike(task: int, count: int, seed: int = 0) -> Tensor:
    """Samples of a task that varies like the others and differs from them in a narrow direction.

    All vary widely in four directions and little in two others, in which their means differ by
    several deviations but by less than the wide directions vary.
    """
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)))
    axes = basis.Q.T  # (D, D)
    noise = torch.Generator().manual_seed(100 * seed + task)
    deviations = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.2, 0.2])
    narrow = torch.tensor([[0.0, 0.0], [1.2, 0.0], [0.0, 1.2]])[task]
    samples = torch.randn(count, 6, generator=noise) * deviations  # (N, 6)
    samples[:, 4:] += narrow
    rest = 0.05 * torch.randn(count, WIDTH, generator=noise)
    return 20 * axes[6] + samples @ axes[:6] + rest


def own_first(ranking: str) -> float:
    """Return the share of test samples whose first expert is their own, in percent."""
    router = AutoencoderRouter(
        components=8,
        max_experts=1,
        threshold_scale=math.inf,
        ranking=ranking,  # type: ignore[arg-type]
    )
    for task, name in enumerate(TASKS):
        router.fit(name, alike(task, 300))
    hits = []
    for task, name in enumerate(TASKS):
        rows = alike(task, 100, seed=1)
        order = router.route(RouteQuery(rows, [name] * 100, "test", None, TASKS)).order
        hits += [experts == (name,) for experts in order]
    return 100 * sum(hits) / len(hits)


def test_likelihood_separates_tasks_that_a_reconstruction_loss_cannot() -> None:
    assert own_first("loss") < 70
    assert own_first("relative") < 70
    assert own_first("likelihood") > 95


def moments(components: int = 5) -> list[TaskMoments]:
    return [TaskMoments.fit(alike(task, 50 + 20 * task), components) for task in range(3)]


def test_distances_equal_the_dense_formula() -> None:
    tasks, rows = moments(), alike(1, 7, seed=3)
    covariance = sum(
        task.factor.double().T @ task.factor.double() + task.rest.double() * torch.eye(WIDTH)
        for task in tasks
    ) / len(tasks)
    covariance += SHRINKAGE * covariance.trace() / WIDTH * torch.eye(WIDTH)
    expected = torch.stack(
        [
            ((rows - task.mean).double() @ torch.linalg.inv(covariance))
            .mul((rows - task.mean).double())
            .mean(dim=1)
            for task in tasks
        ],
        dim=1,
    )
    torch.testing.assert_close(
        PooledGaussian(tasks).distances(rows), expected.float(), rtol=1e-5, atol=1e-6
    )


def test_the_moments_are_those_of_the_samples() -> None:
    rows = alike(0, 40)
    whole = TaskMoments.fit(rows[:, :3], 9)  # one component, since D / 2 is 1
    covariance = whole.factor.T @ whole.factor + whole.rest * torch.eye(3)
    expected = torch.cov(rows[:, :3].T, correction=0)
    torch.testing.assert_close(whole.mean, rows[:, :3].mean(dim=0))
    torch.testing.assert_close(covariance.trace(), expected.trace())
    values = torch.linalg.eigvalsh(expected)
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance)[-1], values[-1])
    assert TaskMoments.fit(rows, 9).factor.shape == (9, WIDTH)
    assert TaskMoments.fit(rows, 99).factor.shape == (WIDTH // 2, WIDTH)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_the_order_of_the_tasks_changes_only_the_columns(order: list[int]) -> None:
    tasks, rows = moments(), torch.cat([alike(task, 20, seed=1) for task in range(3)])
    ours = PooledGaussian([tasks[i] for i in order]).distances(rows)
    theirs = PooledGaussian(tasks).distances(rows)[:, order]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert torch.equal(ours.argmin(dim=1), theirs.argmin(dim=1))


def test_the_distances_of_a_row_do_not_depend_on_the_other_rows() -> None:
    gaussian = PooledGaussian(moments())
    rows = torch.cat([alike(task, 700, seed=1) for task in range(3)])  # in several chunks
    together = gaussian.distances(rows)
    assert together.shape == (2100, 3)
    for i in range(0, 2100, 211):
        assert torch.equal(gaussian.distances(rows[i : i + 1])[0], together[i])


@pytest.mark.parametrize("samples", [1, 2, 5000])
def test_any_number_of_samples_gives_finite_distances(samples: int) -> None:
    tasks = [TaskMoments.fit(alike(task, samples), 8) for task in range(3)]
    assert all(torch.isfinite(task.factor).all() and task.rest >= 0 for task in tasks)
    distances = PooledGaussian(tasks).distances(torch.stack([task.mean for task in tasks]))
    assert torch.isfinite(distances).all()
    assert distances.argmin(dim=1).tolist() == [0, 1, 2]
    assert distances.min() >= 0


@pytest.mark.parametrize("width", [1, 2, WIDTH])
def test_tasks_without_any_variation_are_told_apart(width: int) -> None:
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    tasks = [TaskMoments.fit(row.expand(50, width), 4) for row in rows]
    distances = PooledGaussian(tasks, least=1e-10).distances(rows)
    assert torch.isfinite(distances).all()
    assert distances.argmin(dim=1).tolist() == [0, 1, 2]


def test_one_dimension_is_the_squared_z_score() -> None:
    rows = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)) * 3
    gaussian = PooledGaussian([TaskMoments.fit(rows, 8), TaskMoments.fit(rows + 2, 8)])
    variance = float(rows.var(correction=0)) * (1 + SHRINKAGE)
    expected = (rows[:5] - torch.stack([rows.mean(), rows.mean() + 2])).square() / variance
    torch.testing.assert_close(gaussian.distances(rows[:5]), expected, rtol=1e-4, atol=1e-6)


def test_a_typical_sample_of_a_single_task_has_distance_one() -> None:
    rows = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(0))
    distances = PooledGaussian([TaskMoments.fit(rows[:1000], 8)]).distances(rows[1000:])
    assert distances.shape == (1000, 1)
    assert float(distances.mean()) == pytest.approx(1, abs=0.1)


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="no task"):
        PooledGaussian([])
    with pytest.raises(ValueError, match=r"expected embeddings \(N, 24\), got \(2, 3\)"):
        PooledGaussian(moments()).distances(torch.zeros(2, 3))
