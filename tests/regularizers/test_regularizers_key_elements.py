from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, ExpertShape
from dmole.regularizers import KeyElements, StageView, Step, key_element_size, key_elements
from dmole.regularizers.element_counts import pack_counts, unpack_counts

# Three tasks on one linear of 2 x 3, by hand. Key elements of the first: 4 and -3 at (0, 0) and
# (1, 2); of the second: 5 and 2 at (1, 2) and (0, 1).
UPDATES = (
    torch.tensor([[4.0, 1.0, 0.0], [0.5, 0.0, -3.0]]),
    torch.tensor([[0.0, 2.0, 1.0], [0.0, -1.5, 5.0]]),
)
NEW = torch.tensor([[1.0, -6.0, 9.0], [9.0, 9.0, -2.0]])


class Linears:
    """A library with one linear whose adapters have given updates."""

    def __init__(self, *updates: Tensor) -> None:
        model = nn.ModuleDict({"one": nn.Linear(3, 2)})
        self.library = ExpertLibrary(model, lambda path: "language")
        for index, update in enumerate(updates):
            self.library.add(f"task{index}", {"one": 2}, {"one": 7.0})
            ((_, expert),) = self.library.experts(f"task{index}")
            expert.lora_b.data = torch.eye(2)
            expert.lora_a.data = update.clone()

    def stage(self, index: int) -> StageView:
        view = SimpleNamespace(library=self.library, experts=(f"task{index}",), index=index + 1)
        return cast("StageView", view)

    def step(self, index: int) -> Step:
        zero = lambda: torch.zeros(())  # noqa: E731
        view: Any = SimpleNamespace(library=self.library, experts=(f"task{index}",), zero=zero)
        return cast("Step", view)


def after_two(counting: Any = "union", fraction: float = 0.34) -> tuple[Linears, KeyElements]:
    linears = Linears(*UPDATES, NEW)
    term = KeyElements(10.0, fraction, counting)
    assert term(linears.step(0)) == 0
    for index in range(2):
        term.before_stage(linears.stage(index))
        term.after_stage(linears.stage(index))
    return linears, term


@pytest.mark.parametrize(
    ("counting", "expected"),
    [("union", (1 + 6 + 2) / 3), ("each", (1 + 6 + 2 + 2) / 4)],
    ids=["union", "as the authors' program joins the lists of two tasks"],
)
def test_the_term_is_the_mean_size_of_the_key_elements_of_earlier_tasks(
    counting: str, expected: float
) -> None:
    linears, term = after_two(counting)
    assert_close(term(linears.step(2)), torch.tensor(10 * expected))


def test_only_key_elements_get_a_gradient() -> None:
    linears, term = after_two()
    ((_, expert),) = linears.library.experts("task2")
    (gradient,) = torch.autograd.grad(term(linears.step(2)), expert.lora_a)
    expected = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, -1.0]]) * 10 / 3  # B is the identity
    assert_close(gradient, expected)


@pytest.mark.parametrize("counting", ["union", "each"])
def test_the_saved_state_gives_the_same_term(counting: str) -> None:
    linears, term = after_two(counting)
    other = KeyElements(10.0, 0.34, cast("Any", counting))
    other.load_tensors(term.tensors())
    assert torch.equal(other(linears.step(2)), term(linears.step(2)))
    (packed,) = term.extra_tensors().values()
    assert packed.shape == ({"union": 1, "each": 2}[counting], 1)


def test_the_largest_elements_are_key_the_first_among_equal_ones_and_zeros_never() -> None:
    update = torch.tensor([[2.0, -2.0, 2.0], [0.0, -7.0, 0.0]])
    assert key_elements(update, 0.5).tolist() == [[True, True, False], [False, True, False]]
    assert key_elements(update, 1.0).sum() == 4
    assert not key_elements(update, 0.1).any()  # less than one element
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(40, 50, generator=generator)
    chosen = key_elements(large, 0.02)
    assert chosen.sum() == math.floor(0.02 * 2000)
    assert large.abs()[chosen].min() > large.abs()[~chosen].max()


def test_the_size_is_computed_in_single_precision() -> None:
    a, b = torch.tensor([[1.0]], dtype=torch.bfloat16), torch.tensor([[1.0]]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        size = key_element_size(a, b, torch.tensor([0]))
    assert size.dtype == torch.float32


@pytest.mark.parametrize("most", [1, 2, 255])
def test_counts_survive_packing(most: int) -> None:
    counts = (torch.arange(1001) % (most + 1)).to(torch.uint8)
    packed = pack_counts(counts)
    assert packed.shape == (most.bit_length(), 126)
    assert torch.equal(unpack_counts(packed, 1001), counts)


def test_a_state_of_another_size_or_kind_is_refused() -> None:
    linears, term = after_two()
    name = "extra/one"
    with pytest.raises(ValueError, match="key elements of one must be uint8 of two axes"):
        term.load_tensors({name: torch.zeros(1, 1)})
    term.load_tensors({name: torch.zeros(1, 2, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="key elements of one: expected 1 to 8 planes of 1 bytes"):
        term(linears.step(2))


def test_an_adapter_that_all_stages_train_is_refused() -> None:
    linears = Linears(UPDATES[0])
    with pytest.raises(ValueError, match="an adapter for each stage: leave shared_expert"):
        KeyElements().before_stage(
            cast("StageView", SimpleNamespace(library=linears.library, experts=(), index=2))
        )
    KeyElements(0.0).before_stage(linears.stage(3))  # disabled


@pytest.mark.parametrize("several", [{"branches": 2}, {"heads": 2}])
def test_an_adapter_whose_update_depends_on_the_token_is_refused(several: dict[str, int]) -> None:
    linears = Linears()
    linears.library.add_shapes("task0", {"one": ExpertShape(2, 2.0, **several)})
    with pytest.raises(ValueError, match="expert 'task0' mixes several in linear one"):
        KeyElements().before_stage(linears.stage(0))


@pytest.mark.parametrize(
    "arguments", [{"coefficient": -1.0}, {"fraction": 0.0}, {"fraction": 1.5}, {"counting": "both"}]
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must"):
        KeyElements(**arguments)
