"""The values that initializers give to a linear: closed forms, parity, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_allocation_ranks import TwoTowers, make_batches, on_ranks
from torch import Tensor, nn
from torch.testing import assert_close

from dmole.allocation import (
    AdapterInitializer,
    EvaInitializer,
    GradientInitializer,
    Initializer,
    KeepInitializer,
    SensitivityAllocator,
    UniformAllocator,
)
from dmole.allocation.initializers import NewLinear
from dmole.allocation.initializers.directions import (
    completed,
    missing_directions,
    orthonormal,
    principal_directions,
    top_directions,
    without,
)
from dmole.allocation.inputs import InputMoments, second_moment
from dmole.allocation.proxy import sum_gradients
from dmole.cli.main import main
from dmole.experts import ExpertShape

OUT, IN, RANK = 6, 10, 3


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor | None = None, kept: Tensor | None = None, rank: int = RANK) -> NewLinear:
    held = matrix(OUT, IN, 1) if weight is None else weight
    return NewLinear(
        expert="paint",
        path="fc",
        scaling=2.0,
        down=matrix(rank, held.shape[1], 2),
        out_features=len(held),
        weight=lambda: held,
        kept=torch.zeros(0, held.shape[1]) if kept is None else kept,
    )


def moments_of(x: Tensor) -> Tensor:
    wide = nn.functional.pad(x, (0, 1), value=1.0)
    return wide.T @ wide


def assert_orthonormal(rows: Tensor) -> None:
    assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)


def same_span(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours.T @ ours, theirs.T @ theirs, atol=1e-4, rtol=0)


# -- gradient --------------------------------------------------------------------------------


def known(values: list[float]) -> tuple[Tensor, Tensor]:
    """Return a gradient of known singular values, and its right singular vectors."""
    left = orthonormal(matrix(len(values), OUT, 3))
    right = orthonormal(matrix(len(values), IN, 4))
    return left.T @ torch.diag(torch.tensor(values)) @ right, right


def test_the_rows_span_the_leading_directions_of_the_gradient() -> None:
    gradient, right = known([9.0, 5.0, 3.0, 1.0])
    found = GradientInitializer().start(linear(), gradient)
    assert found.up is None
    assert found.found == RANK
    for row, direction in zip(found.down, right[:RANK], strict=True):
        assert abs(float(row @ direction)) == pytest.approx(1, abs=1e-5)
        assert row.abs().max() == row.max()
    stable = GradientInitializer(scale="stable", gamma=4.0).start(linear(), gradient)
    assert_close(stable.down, found.down * OUT**0.25 / 2.0)


def test_a_gradient_of_few_directions_is_completed_by_the_kaiming_values() -> None:
    gradient, right = known([9.0])
    found = GradientInitializer().start(linear(), gradient)
    assert found.found == 1
    assert_orthonormal(found.down)
    same_span(found.down[:1], right)
    spanned = orthonormal(torch.cat([right, linear().down[1:]]))
    assert_close(without(found.down, spanned), torch.zeros(RANK, IN), atol=1e-5, rtol=0)
    for nothing in (None, torch.zeros(OUT, IN)):
        alone = GradientInitializer().start(linear(), nothing)
        assert alone.found == 0
        same_span(alone.down, orthonormal(linear().down))


# -- keep ------------------------------------------------------------------------------------


def test_a_row_is_orthogonal_to_what_is_kept_of_weight_and_tasks() -> None:
    weight = matrix(OUT, IN, 1)
    principal = principal_directions(weight, 0.6)
    kept = orthonormal(without(matrix(2, IN, 5), principal))
    found = KeepInitializer().start(linear(weight, kept), matrix(OUT, IN, 6))
    assert_orthonormal(found.down)
    basis = torch.cat([principal, kept])
    assert_close(found.down @ basis.T, torch.zeros(RANK, len(basis)), atol=1e-5, rtol=0)
    left = without(matrix(OUT, IN, 6), basis)
    same_span(found.down, top_directions(left, RANK))


def test_without_a_direction_left_a_row_is_zero() -> None:
    kept = torch.eye(IN)[:8]
    found = KeepInitializer(weight_energy=0.0).start(linear(kept=kept), matrix(OUT, IN))
    assert found.found == 2
    assert_orthonormal(found.down[:2])
    assert not found.down[2].any()
    assert not found.down[:, :8].abs().gt(1e-6).any()


def test_with_nothing_kept_it_is_the_gradient_initializer() -> None:
    gradient = matrix(OUT, IN, 6)
    empty = KeepInitializer(weight_energy=0.0, task_energy=0.0)
    assert empty.kept_source == "nothing"
    assert not empty.reads_weights
    theirs = GradientInitializer().start(linear(), gradient)
    assert torch.equal(empty.start(linear(), gradient).down, theirs.down)


def test_the_weight_keeps_the_directions_below_the_energy_as_the_release() -> None:
    # squares 9, 4, 1: shares 0.643, 0.929, 1
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    sizes = {energy: len(principal_directions(weight, energy)) for energy in (0.0, 0.6, 0.7, 0.95)}
    assert sizes == {0.0: 0, 0.6: 1, 0.7: 1, 0.95: 2}


def test_directions_are_added_until_the_task_has_its_energy_as_in_the_release() -> None:
    # squares 50, 30, 15, 5 along the axes; axis 1 is kept already: 0.3, then 0.8, 0.95, 1
    moments = torch.diag(torch.tensor([50.0, 30.0, 15.0, 5.0]))
    basis = torch.eye(4)[1:2]
    added = {e: missing_directions(moments, basis, e) for e in (0.0, 0.3, 0.5, 0.9, 0.99)}
    assert {energy: len(rows) for energy, rows in added.items()} == {
        **{0.0: 0, 0.3: 0, 0.5: 1},
        **{0.9: 2, 0.99: 3},
    }
    assert_close(added[0.9], torch.eye(4)[[0, 2]])


@pytest.mark.parametrize("directions", ["features", "gradients"])
def test_after_a_stage_the_kept_directions_hold_the_energy_and_stay_orthonormal(
    directions: Any,
) -> None:
    weight = matrix(OUT, IN, 1)
    keep = KeepInitializer(directions=directions, task_energy=0.9)
    x = matrix(40, IN, 7) @ torch.diag(torch.linspace(3, 0.1, IN))
    first = keep.keep(linear(weight), moments_of(x) if directions == "features" else x)
    again = keep.keep(linear(weight, first), moments_of(x) if directions == "features" else x)
    assert torch.equal(first, again)  # nothing is missing any more
    basis = torch.cat([principal_directions(weight, 0.6), first])
    assert_orthonormal(basis)
    energies = [float((x @ b.T).square().sum() / x.square().sum()) for b in (basis, basis[:-1])]
    assert energies[1] < 0.9 <= energies[0] + 1e-6
    assert keep.keep(linear(weight, first), None) is not None


# -- inputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
def test_the_rows_are_the_principal_components_of_the_inputs(center: bool) -> None:
    x = matrix(50, IN, 8) @ torch.diag(torch.linspace(3, 0.5, IN)) + 2.0
    found = EvaInitializer(center=center).start(linear(), moments_of(x))
    assert found.found == RANK
    _, _, components = torch.linalg.svd(x - x.mean(0) if center else x, full_matrices=False)
    same_span(found.down, components[:RANK])
    assert_close((found.down @ components[:RANK].T).abs(), torch.eye(RANK), atol=1e-3, rtol=0)


def test_the_components_are_those_of_peft() -> None:
    pca = pytest.importorskip("peft.utils.incremental_pca")
    x = matrix(60, IN, 8) @ torch.diag(torch.linspace(3, 0.5, IN)) + 2.0
    theirs = pca.IncrementalPCA(n_components=IN, copy=True, lowrank=False)
    for batch in x.split(20):
        theirs.partial_fit(batch)
    found = EvaInitializer().start(linear(), moments_of(x))
    same_span(found.down, theirs.components_[:RANK].float())


def test_moments_are_of_valid_tokens_and_do_not_depend_on_the_batches() -> None:
    layer, x = nn.Linear(IN, OUT), matrix(24, IN, 9).reshape(4, 6, IN)
    valid = torch.arange(12) * 2

    def read(*batches: Tensor) -> Tensor:
        moments = InputMoments({"fc": layer}, lambda _, x: valid[valid < x[..., 0].numel()])
        with moments.attached():
            for batch in batches:
                layer(batch)
        layer(x)  # no longer read
        found = moments.sums["fc"]
        assert found is not None
        return found

    kept = x.reshape(-1, IN)[valid]
    assert_close(read(x), moments_of(kept))
    assert_close(read(x[:1], x[1:]), moments_of(kept))
    assert_close(second_moment(read(x), center=False), kept.T @ kept)


# -- gradients of weights ----------------------------------------------------------------------


def weights_of(model: TwoTowers, *, linears: bool) -> dict[str, Any]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name: layer if linears else layer.weight for name, layer in layers.items()}


def losses(model: TwoTowers, batch: list[Any]) -> list[Tensor]:
    return [model.loss(sample) for sample in batch]


@pytest.mark.parametrize("linears", [False, True])
@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_are_summed_over_batches_and_freed(linears: bool, passes: int) -> None:
    model = TwoTowers()
    weights = weights_of(model, linears=linears)
    found = {
        path: gradient
        for path, owner, gradient in sum_gradients(
            model, weights, make_batches(), lambda b: losses(model, b), passes=passes
        )
    }
    torch.stack(
        [loss for batch in make_batches() for loss in losses(model, batch)]
    ).sum().backward()
    for path, layer in weights_of(model, linears=True).items():
        if path == "idle":
            assert found[path] is None
        else:
            assert_close(found[path], layer.weight.grad)


@pytest.mark.parametrize("size", [2, 3])
def test_each_gradient_is_on_one_rank_and_is_that_of_one_process(size: int) -> None:
    alone = TwoTowers()
    whole = {
        path: gradient
        for path, _, gradient in sum_gradients(
            alone, weights_of(alone, linears=False), make_batches(), lambda b: losses(alone, b)
        )
    }

    models, batches = [TwoTowers() for _ in range(size)], make_batches()  # threads share the seed

    def work(ranks: Any) -> list[tuple[str, int, Tensor | None]]:
        model = models[ranks.index]
        own = [batch[ranks.index :: size] for batch in batches]
        weights = weights_of(model, linears=False)
        found = sum_gradients(model, weights, own, lambda b: losses(model, b), ranks=ranks)
        return [(path, owner, gradient) for path, owner, gradient in found]

    results = on_ranks(size, work)
    for entries in zip(*results, strict=True):
        (path,), (owner,) = {e[0] for e in entries}, {e[1] for e in entries}
        held = [rank for rank, (_, _, gradient) in enumerate(entries) if gradient is not None]
        assert held == [owner]
        expected = torch.zeros(5, 5) if whole[path] is None else whole[path]
        assert_close(entries[owner][2], expected)


# -- an adapter -------------------------------------------------------------------------------


def write_adapter(folder: Path, alpha: float = 6.0, **tensors: Tensor) -> Path:
    folder.mkdir()
    named = {f"base_model.model.fc.lora_{part}.weight": t for part, t in tensors.items()}
    save_file(
        {key: tensor.contiguous() for key, tensor in named.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": alpha})
    )
    return folder


def test_the_adapter_keeps_its_update_whatever_the_scaling(tmp_path: Path) -> None:
    down, up = matrix(RANK, IN, 1), matrix(OUT, RANK, 2)
    same = AdapterInitializer(str(write_adapter(tmp_path / "same", A=down, B=up)))
    same.check("paint", {"fc": RANK})
    found = same.start(linear(), None)
    assert torch.equal(found.down, down)
    assert found.up is not None
    assert torch.equal(found.up, up)  # both have scaling 2
    other = AdapterInitializer(str(write_adapter(tmp_path / "other", alpha=1.5, A=down, B=up)))
    found = other.start(linear(), None)
    assert found.up is not None
    assert_close(2.0 * found.up @ found.down, 0.5 * up @ down)


def test_only_the_named_expert_starts_from_the_adapter(tmp_path: Path) -> None:
    starts = AdapterInitializer(str(tmp_path / "missing"), expert="count")
    starts.check("paint", {"fc": RANK})
    assert torch.equal(starts.start(linear(), None).down, linear().down)
    with pytest.raises(ValueError, match="missing"):
        starts.check("count", {"fc": RANK})


@pytest.mark.parametrize(
    ("tensors", "ranks", "problem"),
    [
        ({}, {"fc": 2}, "linear fc has rank 3 in the adapter, 2 in the expert"),
        ({}, {"fc": 3, "proj": 3}, "only the expert is on linear proj"),
        ({}, {"proj": 3}, "only the adapter is on linear fc"),
        ({"A": torch.full((RANK, IN), torch.nan)}, {"fc": 3}, "not finite"),
        ({"A": torch.zeros(RANK, IN + 1)}, {"fc": 3}, "the model needs"),
        ({"B": torch.zeros(OUT, RANK + 1)}, {"fc": 3}, "the model needs"),
        ({"A": None}, {"fc": 3}, "lacks lora_A"),
        ({"C": torch.zeros(2, 2)}, {"fc": 3}, "is unknown"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, tensors: dict[str, Any], ranks: dict[str, int], problem: str
) -> None:
    whole = {"A": matrix(RANK, IN), "B": matrix(OUT, RANK)} | tensors
    held = {part: tensor for part, tensor in whole.items() if tensor is not None}
    starts = AdapterInitializer(str(write_adapter(tmp_path / "adapter", **held)))

    def begin() -> None:
        starts.check("paint", ranks)
        starts.start(linear(), None)

    with pytest.raises(ValueError, match=problem) as error:
        begin()
    assert "adapter" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_that_is_missing_is_refused_before_the_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = "--model.allocator.init_args.initializer"
    folder = tmp_path / "none"
    words = ["fit", "--config", "quickstart.yaml", "--config", "methods/finetune.yaml"]
    words += [start, "dmole.allocation.AdapterInitializer", f"{start}.init_args.folder"]
    assert main([*words, str(folder), "--trainer.default_root_dir", str(tmp_path)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"dmole: cannot read expert {folder}/adapter_config.json: ")
    assert not list(tmp_path.iterdir())


def test_a_mixture_is_no_adapter_to_start_from(tmp_path: Path) -> None:
    tensors = {"fc.lora_a": matrix(4, IN), "fc.lora_b": matrix(OUT, 4), "fc.router": matrix(2, IN)}
    save_file(tensors, tmp_path / "mixture.safetensors")
    shape = ExpertShape(4, 8.0, heads=2).to_list()
    content = {"base_model": "tiny", "layers": {"fc": shape}}
    (tmp_path / "mixture.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no plain LoRA on linear fc"):
        AdapterInitializer(str(tmp_path)).check("paint", {"fc": 4})


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", [UniformAllocator, SensitivityAllocator])
def test_an_initializer_and_a_start_from_a_past_expert_exclude_each_other(allocator: Any) -> None:
    with pytest.raises(ValueError, match="set only one of the two"):
        allocator(start="closest", initializer=EvaInitializer())
    assert allocator(initializer=EvaInitializer()).initializer is not None


@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        (EvaInitializer, {"proxy_fraction": 0.0}, "proxy_fraction"),
        (EvaInitializer, {"proxy_passes": 0}, "proxy_passes"),
        (GradientInitializer, {"scale": "large"}, "scale"),
        (GradientInitializer, {"gamma": 0.0}, "gamma"),
        (KeepInitializer, {"weight_energy": 1.1}, "weight_energy"),
        (KeepInitializer, {"task_energy": -0.1}, "task_energy"),
        (KeepInitializer, {"directions": "both"}, "directions"),
        (AdapterInitializer, {"folder": ""}, "folder"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    kind: type[Initializer], settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        kind(**settings)


def test_rows_that_are_complete_are_returned_as_they_are() -> None:
    rows = orthonormal(matrix(RANK, IN))
    assert completed(rows, linear().down, rows[:0]) is rows
    assert dataclasses.replace(linear(), kept=rows).rank == RANK
