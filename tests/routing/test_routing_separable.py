"""Two banks of experts: the weights of each router, the fusion, gradients and generation."""

from __future__ import annotations

import pytest
import torch
from families import randomize
from torch import nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, Gates
from dmole.routing import DenseGate, OneHotGate, SeparableMixing, TokenGate, TopKGate

IN, OUT, TEXT, RANK, ALPHA, EXPERTS = 9, 5, 6, 2, 3.0, 8
BANK = EXPERTS // 2
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
TEXTS = torch.randn(3, TEXT, generator=torch.Generator().manual_seed(5))


def make_library(
    gate: TokenGate, view: str = "language", experts: int = EXPERTS, **options: bool
) -> ExpertLibrary:
    mixing = SeparableMixing(gate, **options)
    mixing.text_width = TEXT
    library = ExpertLibrary(nn.ModuleDict({"x": nn.Linear(IN, OUT)}), lambda _: view, mixing=mixing)
    library.add_shapes("a", {"x": mixing.shape(RANK, ALPHA, experts, common=False)})
    randomize(library, "a", 0.7)
    return library


def gates_of(rows: torch.Tensor | None = None, texts: torch.Tensor | None = TEXTS) -> Gates:
    mask = MASK if rows is None else None
    return Gates(["a"], torch.ones(3, 1), rows, mask, recording=True, texts=texts)


def forward(library: ExpertLibrary, x: torch.Tensor, gates: Gates) -> torch.Tensor:
    with library.context.use(gates):
        return library.model["x"](x)


def by_definition(
    library: ExpertLibrary, gate: TokenGate, x: torch.Tensor, texts: torch.Tensor
) -> torch.Tensor:
    """One sequence ``(tokens, in)``, an expert at a time, in double precision."""
    ((_, expert),) = library.experts("a")
    own = {key: value.detach().double() for key, value in expert.named_parameters()}
    linear = library.model["x"].base
    y = x.double() @ linear.weight.detach().double().T + linear.bias.detach().double()
    routers = own["router"] @ x.double().mean(dim=0), own["text_router"] @ texts.double()
    banks = []
    for bank, logits in enumerate(routers):
        weights = gate(logits).weights.double()
        out = torch.zeros_like(y)
        for i in range(BANK):
            rows = slice((bank * BANK + i) * RANK, (bank * BANK + i + 1) * RANK)
            update = x.double() @ own["lora_a"][rows].T @ own["lora_b"][:, rows].T
            out += weights[i] * ALPHA / RANK * update
        banks.append(out)
    scores = torch.stack([banks[0] @ own["fusion"][0], banks[1] @ own["fusion"][1]], dim=-1)
    share = scores.softmax(dim=-1)
    return y + share[:, :1] * banks[0] + share[:, 1:] * banks[1]


@pytest.mark.parametrize(
    "gate", [TopKGate(2), DenseGate(), OneHotGate()], ids=lambda g: str(type(g))
)
def test_a_sequence_is_the_fused_sum_of_two_banks_without_its_padding(gate: TokenGate) -> None:
    library, x = make_library(gate), torch.randn(3, 5, IN)
    found = forward(library, x, gates_of())
    for row, valid in enumerate(MASK.bool()):
        expected = by_definition(library, gate, x[row, valid], TEXTS[row])
        assert_close(found[row, valid].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_images_read_the_instruction_of_their_sample(packed: bool) -> None:
    """Sample 1 has no image, sample 2 has two images, or packed patches of one."""
    library = make_library(TopKGate(2), "vision")
    rows = torch.tensor([4, 0, 3]) if packed else torch.tensor([1, 0, 2])
    x = torch.randn(7, IN) if packed else torch.randn(3, 5, IN)
    found = forward(library, x, gates_of(rows))
    sequences = (
        {0: (x[:4], found[:4]), 2: (x[4:], found[4:])}
        if packed
        else {0: (x[0], found[0]), 2: (x[2], found[2])}
    )
    for sample, (inputs, outputs) in sequences.items():
        expected = by_definition(library, TopKGate(2), inputs, TEXTS[sample])
        assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-4)


def test_top_k_is_the_softmax_of_the_largest_logits_and_one_hot_is_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    expected = torch.zeros(1, 4)
    expected[0, 1:3] = torch.tensor([3.0, 2.0]).softmax(dim=0)
    assert_close(TopKGate(2)(logits).weights, expected)
    assert OneHotGate()(logits).weights.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert OneHotGate()(torch.zeros(1, 4)).weights.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_gradients_reach_soft_routers_and_hard_ones_are_fixed() -> None:
    soft, hard = make_library(TopKGate(2)), make_library(OneHotGate(), train_routers=False)
    for library in (soft, hard):
        library.train_only("a")
        forward(library, torch.randn(3, 5, IN), gates_of()).square().sum().backward()
    ((_, ours),), ((_, theirs),) = soft.experts("a"), hard.experts("a")
    for name in ("router", "text_router", "fusion", "lora_a", "lora_b"):
        assert getattr(ours, name).grad.abs().sum() > 0
    for name in ("router", "text_router"):
        assert not getattr(theirs, name).requires_grad
    assert {k for k, p in theirs.named_parameters() if p.requires_grad} == {
        *("fusion", "lora_a", "lora_b")
    }


def test_generated_tokens_keep_the_choice_of_the_prompt() -> None:
    library, gates = make_library(TopKGate(2)), gates_of()
    prompt, token = torch.randn(3, 5, IN), torch.randn(3, 1, IN)
    with torch.no_grad():
        forward(library, prompt, gates)
        chosen = gates.decisions["x"].clone()
        forward(library, token, gates)
        assert torch.equal(gates.decisions["x"], chosen)
        alone = gates_of()
        forward(library, token, alone)
    assert not torch.equal(alone.decisions["x"], chosen)


def test_an_odd_number_of_experts_or_no_instruction_is_refused() -> None:
    mixing = SeparableMixing(TopKGate(2))
    with pytest.raises(ValueError, match="two banks of as many experts, the allocator gives 3"):
        mixing.shape(RANK, ALPHA, 3, common=False)
    with pytest.raises(ValueError, match="the language needs embeddings of the samples'"):
        forward(make_library(TopKGate(2)), torch.randn(3, 5, IN), gates_of(texts=None))
