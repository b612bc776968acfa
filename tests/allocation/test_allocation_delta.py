"""The size of an update relative to the weight, by unit."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dmole.allocation import Unit, delta
from dmole.allocation.delta import product_norm, relative_deltas
from dmole.experts import ExpertLibrary
from dmole.experts.shape import ExpertShape


def make_library() -> ExpertLibrary:
    """Return a model of three linears, the first two with an expert of scaling 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    library = ExpertLibrary(model, lambda path: "language", 0.0, 0)
    library.add("paint", {"0": 2, "1": 2}, {"0": 4.0, "1": 4.0})
    for _, parameter in library.parameters("paint"):
        nn.init.normal_(parameter)
    return library


UNITS = [
    Unit("both", "language", ("0", "1"), 8),
    Unit("half", "language", ("1", "2"), 8),
    Unit("none", "language", ("2",), 8),
]


@torch.no_grad()
def by_hand(library: ExpertLibrary, path: str) -> float:
    expert = dict(library.experts("paint"))[path]
    update = 2.0 * expert.get_parameter("lora_b") @ expert.get_parameter("lora_a")
    weight = library.base_weight(path)
    return float(torch.linalg.matrix_norm(update) / torch.linalg.matrix_norm(weight))


def test_a_unit_sums_the_relative_norms_of_its_updates() -> None:
    library = make_library()
    first, second = by_hand(library, "0"), by_hand(library, "1")
    found = relative_deltas(library, "paint", UNITS)
    assert found == {"both": pytest.approx(first + second), "half": pytest.approx(second)}


def test_a_weight_of_zeros_adds_nothing() -> None:
    library = make_library()
    library.model.get_submodule("0").base.weight.data.zero_()  # type: ignore[union-attr]
    found = relative_deltas(library, "paint", UNITS)
    assert found["both"] == found["half"] == pytest.approx(by_hand(library, "1"))


def test_an_update_that_is_not_finite_names_the_unit() -> None:
    library = make_library()
    dict(library.experts("paint"))["1"].get_parameter("lora_b").data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="'paint': the update of unit both is not finite"):
        relative_deltas(library, "paint", UNITS)


def test_a_mixture_of_updates_is_refused() -> None:
    library = make_library()
    library.add_shapes("mixed", {"2": ExpertShape(2, 4.0, branches=2)})
    with pytest.raises(ValueError, match="'mixed' mixes several updates in linear 2"):
        relative_deltas(library, "mixed", UNITS)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_the_norm_of_a_product_is_that_of_its_matrix(
    r: int, rows: int, columns: int, s: int
) -> None:
    generator = torch.Generator().manual_seed(s)
    up, down = (
        torch.randn(rows, r, generator=generator),
        torch.randn(r, columns, generator=generator),
    )
    expected = torch.linalg.matrix_norm(up @ down)
    assert product_norm(down, up).item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(delta).failed == 0
