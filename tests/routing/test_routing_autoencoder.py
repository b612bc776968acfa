from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dmole.routing import (
    MLPReconstructor,
    PCAReconstructor,
    Preprocessor,
    ReconstructorStack,
    Weights,
    normalize_rows,
    parameter_count,
    quantile_table,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weights(width: int, hidden: int, relu: bool = True, sigmoid: bool = False) -> Weights:
    return Weights(
        torch.randn(hidden, width),
        torch.randn(hidden),
        torch.randn(width, hidden),
        torch.randn(width),
        relu=relu,
        sigmoid=sigmoid,
    )


@pytest.mark.parametrize(("relu", "sigmoid"), [(False, False), (True, False), (True, True)])
def test_the_batched_product_equals_each_reconstructor_alone(relu: bool, sigmoid: bool) -> None:
    stack = [random_weights(12, hidden, relu, sigmoid) for hidden in (3, 5, 1)]
    rows = torch.randn(7, 12)
    losses = ReconstructorStack(stack).losses(rows)
    for column, one in enumerate(stack):
        hidden = rows @ one.w_enc.T + one.b_enc
        output = (hidden.relu() if relu else hidden) @ one.w_dec.T + one.b_dec
        output = output.sigmoid() if sigmoid else output
        assert_close(losses[:, column], (output - rows).square().mean(1), rtol=1e-5, atol=1e-6)


def test_losses_are_the_same_under_autocast_and_for_any_batch() -> None:
    stack = ReconstructorStack([random_weights(64, 16) for _ in range(3)])
    rows = torch.randn(33, 64)
    losses = stack.losses(rows)
    assert losses.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stack.losses(rows), losses)
    assert torch.equal(torch.cat([stack.losses(row[None]) for row in rows]), losses)
    assert torch.equal(stack.losses(rows.flip(0)).flip(0), losses)


def test_the_paper_autoencoder_has_789632_parameters() -> None:
    weights = Weights(
        torch.empty(128, 3072), torch.empty(128), torch.empty(3072, 128), torch.empty(3072),
        relu=True, sigmoid=True,
    )  # fmt: skip
    assert parameter_count(weights) == 789_632


@pytest.mark.parametrize(("samples", "width"), [(200, 20), (15, 40)])
def test_pca_reaches_the_least_error_of_any_linear_autoencoder(samples: int, width: int) -> None:
    rows = torch.randn(samples, width) * torch.linspace(3, 0.1, width) + 5
    weights = PCAReconstructor(4).fit(rows, generator())
    values = torch.linalg.svdvals((rows - rows.mean(0)).double())
    least = values[4:].square().sum() / rows.numel()
    assert weights.losses(rows).mean().item() == pytest.approx(least.item(), rel=1e-4)
    assert_close(weights.w_enc @ weights.w_dec, torch.eye(4), atol=1e-5, rtol=0)


def test_pca_is_deterministic_in_sign() -> None:
    rows = torch.randn(50, 8)
    one = PCAReconstructor(3).fit(rows, generator())
    other = PCAReconstructor(3).fit(rows.flip(0), generator(1))
    assert_close(one.w_enc, other.w_enc, atol=1e-5, rtol=0)
    assert (one.w_enc.gather(1, one.w_enc.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("samples", "width", "used"), [(5, 40, 4), (100, 10, 5), (1, 10, 0)])
def test_pca_keeps_too_few_components_to_copy_everything(
    samples: int, width: int, used: int
) -> None:
    weights = PCAReconstructor(128).fit(torch.randn(samples, width), generator())
    assert weights.w_enc.shape == (used, width)
    assert torch.isfinite(weights.losses(torch.randn(3, width))).all()


def test_pca_of_identical_samples_is_finite() -> None:
    rows = torch.ones(10, 30)
    losses = PCAReconstructor(4).fit(rows, generator()).losses(rows)
    assert losses.max() < 1e-10


def test_a_sigmoid_cannot_go_below_the_error_of_its_range() -> None:
    rows = normalize_rows(torch.randn(60, 16))
    weights = MLPReconstructor(hidden=16, output="sigmoid", max_epochs=200).fit(rows, generator())
    assert (weights.losses(rows) >= rows.clamp_max(0).square().mean(1)).all()


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_training_reduces_the_loss_and_is_reproducible(output: str) -> None:
    rows = normalize_rows(torch.randn(100, 4) @ torch.randn(4, 16)) + (output == "sigmoid")
    weights = [
        MLPReconstructor(hidden=8, output=output, max_epochs=e).fit(rows, generator())  # type: ignore[arg-type]
        for e in (1, 100, 100)
    ]
    first, last, again = (one.losses(rows).mean() for one in weights)
    assert last < 0.7 * first
    assert torch.equal(last, again)


def test_training_works_under_no_grad_and_inference_mode() -> None:
    rows = torch.randn(10, 6)
    with torch.inference_mode():
        inside = MLPReconstructor(hidden=2, max_epochs=3).fit(rows.clone(), generator())
    outside = MLPReconstructor(hidden=2, max_epochs=3).fit(rows, generator())
    assert torch.equal(inside.w_enc, outside.w_enc)
    assert not inside.w_enc.requires_grad


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_the_output_may_start_at_the_mean(output: str) -> None:
    rows = torch.rand(50, 6) * 0.1 + 0.5
    start = MLPReconstructor(output=output, bias_init="mean")._start(rows, generator())  # type: ignore[arg-type]
    bias = start[3].sigmoid() if output == "sigmoid" else start[3]
    assert_close(bias.detach(), rows.mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("samples", "steps"), [(24, 12), (30, 15), (5, 5), (3000, 12)])
def test_an_epoch_has_a_minimum_number_of_steps(
    samples: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    step = torch.optim.Adam.step

    def counting(optimizer: torch.optim.Adam, *args: Any) -> Any:
        taken.append(1)
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", counting)
    rows = torch.randn(samples, 4)
    MLPReconstructor(hidden=2, min_steps=12, max_epochs=1).fit(rows, generator())
    assert len(taken) == steps  # batches of 2, of 2, of 1 and of 250 samples


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden": 0}, "hidden"),
        ({"min_steps": 0}, "min_steps"),
        ({"output": "relu"}, "output"),
        ({"bias_init": "x"}, "bias_init"),
    ],
)
def test_bad_recipes_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLPReconstructor(**kwargs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="components"):
        PCAReconstructor(0)


def test_a_stack_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="no reconstructor"):
        ReconstructorStack([])
    with pytest.raises(ValueError, match="differ"):
        ReconstructorStack([random_weights(4, 2), random_weights(5, 2)])
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(3, 5\)"):
        random_weights(4, 2).losses(torch.zeros(3, 5))


def test_rows_get_unit_length_and_zero_stays_zero() -> None:
    rows = normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_standardized_rows_of_the_first_task_have_mean_0_and_deviation_1() -> None:
    rows = torch.randn(100, 5) + 3
    out = Preprocessor.fit(rows, floor=1e-3)(rows)
    assert_close(out.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    assert_close(out.std(0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)


def test_a_constant_dimension_does_not_blow_up() -> None:
    rows = torch.randn(100, 5)
    rows[:, 0] = 0
    preprocess = Preprocessor.fit(rows)
    assert preprocess(torch.randn(20, 5)).abs().max() < 1e4
    assert torch.isfinite(Preprocessor.fit(torch.ones(1, 3))(torch.randn(2, 3))).all()


def test_a_part_that_was_constant_in_the_first_task_does_not_dominate_a_later_one() -> None:
    first = torch.cat([torch.randn(200, 6), torch.ones(200, 4)], dim=1)
    later = torch.cat([torch.randn(200, 6), torch.ones(200, 4) + torch.randn(200, 4)], dim=1)
    out = Preprocessor.fit(first)(later).square().mean(0).sqrt()
    assert out[6:].mean() < 2 * out[:6].mean()
    amplified = Preprocessor.fit(first, floor=1e-3)(later).square().mean(0).sqrt()
    assert amplified[6:].mean() > 4 * amplified[:6].mean()


def test_a_single_loss_has_no_deviation() -> None:
    table = quantile_table(torch.tensor([2.0]))
    assert table["Q50"] == 2.0
    assert "std" not in table
    with pytest.raises(ValueError, match="no loss"):
        quantile_table(torch.empty(0))


@pytest.mark.parametrize("block", [1, 3, 32])
def test_a_loss_depends_neither_on_the_other_rows_nor_on_the_other_experts(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 288, generator=generator)
    fitted = [
        PCAReconstructor(128).fit(torch.randn(number, 288, generator=generator), generator)
        for number in (200, 20)  # the second is padded beside the first
    ]
    together = ReconstructorStack(fitted).losses(rows)
    for column, weights in enumerate(fitted):
        alone = torch.cat([weights.losses(part) for part in torch.split(rows, block)])
        assert torch.equal(alone, together[:, column])
