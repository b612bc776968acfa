"""Mixing within layers: values, what counts as a token or a sample, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import make_backbone, make_samples, randomize
from families.modules import batch_of
from torch import nn
from torch.testing import assert_close

from dmole.allocation import UniformAllocator
from dmole.experts import ExpertLibrary, Gates
from dmole.module import ContinualModule
from dmole.routing import (
    BranchMixing,
    CommonExpertRouter,
    CommonMixing,
    DenseGate,
    EntropyGate,
    Mixing,
    OracleRouter,
    TokenGate,
    TokenMixing,
    TokenRouter,
    TopKGate,
)
from dmole.run.context import EvaluationPass

IN, OUT, RANK, ALPHA, EXPERTS = 9, 5, 2, 3.0, 4
SCALING = ALPHA / RANK
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])


def make_library(
    mixing: Mixing,
    view: str = "language",
    common: str | None = None,
    names: Sequence[str] = ("a",),
    experts: int = EXPERTS,
) -> ExpertLibrary:
    library = ExpertLibrary(nn.ModuleDict({"x": nn.Linear(IN, OUT)}), lambda _: view, mixing=mixing)
    for name in (*((common,) if common else ()), *names):
        shape = mixing.shape(RANK, ALPHA, experts, common=name == common)
        library.add_shapes(name, {"x": shape})
        randomize(library, name, 0.7)
    return library


def forward(
    library: ExpertLibrary, x: torch.Tensor, weights: torch.Tensor | None = None, **options: Any
) -> tuple[torch.Tensor, Gates]:
    weights = torch.ones(len(x), len(library.names)) if weights is None else weights
    gates = Gates(library.names, weights, **options)
    with library.context.use(gates):
        return library.model["x"](x), gates


def part(library: ExpertLibrary, name: str) -> dict[str, torch.Tensor]:
    """Return an expert of the layer in double precision."""
    (_, expert), *rest = library.experts(name)
    assert not rest
    return {key: value.detach().double() for key, value in expert.named_parameters()}


def base(library: ExpertLibrary, x: torch.Tensor) -> torch.Tensor:
    linear = library.model["x"].base
    return x.double() @ linear.weight.detach().double().T + linear.bias.detach().double()


def one_by_one(library: ExpertLibrary, gate: TokenGate, x: torch.Tensor) -> torch.Tensor:
    """The definition of a mixture, a token and an expert at a time."""
    own = part(library, "a")
    y = base(library, x).reshape(-1, OUT)
    for row, token in enumerate(x.double().reshape(-1, IN)):
        weights = gate(own["router"] @ token).weights.double()
        for i in range(EXPERTS):
            channels = slice(i * RANK, (i + 1) * RANK)
            a, b = own["lora_a"][channels], own["lora_b"][:, channels]
            y[row] += weights[i] * SCALING * (b @ (a @ token))
    return y.reshape(*x.shape[:-1], OUT)


GATES = {
    "dense": DenseGate(),
    "top 2": TopKGate(2),
    "top 2 as they are": TopKGate(2, renormalize=False),
    "entropy": EntropyGate(top_p=0.5, keep_top_k=1, threshold=0.95),
}
ROWS = {  # the input's shape, and the vision rows of three samples
    "language": ((3, 5, IN), None),
    "vision": ((4, 5, IN), torch.tensor([2, 0, 2])),
    "packed": ((7, IN), torch.tensor([4, 0, 3])),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("rows", ROWS)
def test_a_mixture_is_the_loop_over_its_experts(gate: TokenGate, rows: str) -> None:
    shape, counts = ROWS[rows]
    library = make_library(TokenMixing(gate), "language" if rows == "language" else "vision")
    x = torch.randn(shape)
    mask = MASK if rows == "language" else None
    found, _ = forward(library, x, torch.ones(3, 1), vision_rows=counts, token_mask=mask)
    assert_close(found.double(), one_by_one(library, gate, x), rtol=1e-5, atol=1e-5)


def test_samples_that_do_not_use_the_mixture_are_the_base_models() -> None:
    library = make_library(TokenMixing(DenseGate()))
    x = torch.randn(3, 5, IN)
    found, _ = forward(library, x, torch.tensor([[1.0], [0.0], [1.0]]))
    assert torch.equal(found[1], library.model["x"].base(x)[1])
    assert_close(found[2].double(), one_by_one(library, DenseGate(), x[2]), rtol=1e-5, atol=1e-5)


def test_a_single_expert_has_no_router_and_is_plain_lora() -> None:
    library = make_library(TokenMixing(TopKGate(1)), experts=1)
    own, x = part(library, "a"), torch.randn(3, 5, IN)
    assert set(own) == {"lora_a", "lora_b"}
    found, gates = forward(library, x, recording=True)
    update = SCALING * x.double() @ own["lora_a"].T @ own["lora_b"].T
    assert_close(found.double(), base(library, x) + update, rtol=1e-5, atol=1e-5)
    assert not gates.records


def test_padding_is_not_recorded_and_what_stands_in_it_changes_no_other_token() -> None:
    library = make_library(TokenMixing(TopKGate(2)))
    x = torch.randn(3, 5, IN)
    other = torch.where(MASK.bool()[..., None], x, torch.full_like(x, 100.0))
    outputs, records = [], []
    for values in (x, other):
        found, gates = forward(library, values, token_mask=MASK, recording=True)
        outputs.append(found[MASK.bool()])
        records += gates.records
    assert torch.equal(*outputs)
    for record in records:
        assert record.path == "x"
        assert record.probabilities.shape == record.weights.shape == (int(MASK.sum()), EXPERTS)
        assert torch.equal(record.probabilities, records[0].probabilities)


# -- an expert that all tasks share -----------------------------------------------------------


def update_of(library: ExpertLibrary, name: str, x: torch.Tensor) -> torch.Tensor:
    own = part(library, name)
    return SCALING * x.double() @ own["lora_a"].T @ own["lora_b"].T


@pytest.mark.parametrize("winner", ["common", "own"])
def test_a_saturated_gate_leaves_one_of_two_experts(winner: str) -> None:
    library = make_library(CommonMixing(), common="common", names=("a", "b"), experts=1)
    x = torch.randn(3, 5, IN).abs()
    (_, common), *_ = library.experts("common")
    common.router.data = torch.zeros(2, IN)
    common.router.data[0 if winner == "common" else 1] = 100.0
    # a sample of each task, and one that the base model answers
    weights = torch.tensor([[1.0, 1, 0], [1, 0, 1], [0, 0, 0]])
    found, _ = forward(library, x, weights)
    expected = base(library, x)
    for row, name in enumerate("ab"):
        chosen = "common" if winner == "common" else name
        expected[row] += update_of(library, chosen, x[row])
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_common_and_the_task_expert_share_every_token() -> None:
    library = make_library(CommonMixing(), common="common", names=("a", "b"), experts=1)
    x = torch.randn(2, 5, IN)
    found, gates = forward(
        library, x, torch.tensor([[1.0, 1, 0], [1, 0, 1]]), token_mask=MASK[:2], recording=True
    )
    both = (x.double() @ part(library, "common")["router"].T).softmax(-1)
    own = torch.stack([update_of(library, name, x[row]) for row, name in enumerate("ab")])
    shared = update_of(library, "common", x)
    expected = base(library, x) + both[..., :1] * shared + both[..., 1:] * own
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (record,) = gates.records
    means = torch.stack([shared[row][MASK[row].bool()].mean(0) for row in (0, 1)])
    assert_close(record.output.double(), means, rtol=1e-5, atol=1e-5)


def test_the_mean_over_a_long_sequence_stays_finite_in_half_precision() -> None:
    library = make_library(CommonMixing(), common="common", experts=1)
    library.model.half()
    x = torch.full((1, 2048, IN), 50.0, dtype=torch.float16)  # sums to more than float16 holds
    mask = torch.ones(1, 2048)
    _, gates = forward(library, x, token_mask=mask, recording=True)
    (record,) = gates.records
    mean = update_of(library, "common", x[:, :1])[:, 0]
    assert record.output.dtype == torch.float32
    assert_close(record.output.double(), mean, rtol=1e-5, atol=1e-3)


def test_several_experts_a_task_are_refused_beside_a_common_one() -> None:
    with pytest.raises(ValueError, match="CommonMixing takes one expert per linear and task"):
        CommonMixing().shape(RANK, ALPHA, 2, common=False)


# -- branches -------------------------------------------------------------------------------


def branched(view: str = "language", top_k: int = 2, renormalize: bool = False) -> ExpertLibrary:
    mixing = BranchMixing(top_k, renormalize)
    return make_library(mixing, view, common="common", names=("a", "b"))


def by_branches(
    library: ExpertLibrary,
    x: torch.Tensor,
    first: torch.Tensor,
    names: Sequence[str],
    top_k: int = 2,
    renormalize: bool = False,
) -> torch.Tensor:
    """The definition, a row at a time: ``first`` decides, the task's router looks at it."""
    trunk = part(library, "common")
    y = base(library, x)
    for row, name in enumerate(names):
        p = (part(library, name)["router"] @ first[row].double()).softmax(0)
        chosen = p.topk(top_k).indices.tolist()
        total = sum(p[i] for i in chosen) if renormalize else 1.0
        for i in chosen:
            up = trunk[f"lora_b_{i}"]
            y[row] += SCALING * p[i] / total * (x[row].double() @ trunk["lora_a"].T @ up.T)
    return y


BOTH = torch.tensor([[1.0, 1, 0], [1, 0, 1], [1, 1, 0]])


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_first_token_that_is_no_padding_picks_the_branches_of_a_sequence(
    renormalize: bool,
) -> None:
    library = branched(renormalize=renormalize)
    x = torch.randn(3, 5, IN)
    first = torch.stack([x[0, 2], x[1, 0], x[2, 1]])
    found, _ = forward(library, x, BOTH, token_mask=MASK)
    expected = by_branches(library, x, first, "aba", renormalize=renormalize)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_decision_on_the_prompt_stays_for_every_token_of_the_answer() -> None:
    library = branched()
    prompt, step = torch.randn(3, 5, IN), torch.randn(3, 1, IN)
    first = torch.stack([prompt[0, 2], prompt[1, 0], prompt[2, 1]])
    gates = Gates(library.names, BOTH, token_mask=MASK)
    with torch.no_grad(), library.context.use(gates):
        library.model["x"](prompt)
        found = library.model["x"](step)
    expected = by_branches(library, step, first, "aba")
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_branches_do_not_depend_on_left_padding_or_batch_mates() -> None:
    library = branched()
    x = torch.randn(3, 5, IN)
    together, _ = forward(library, x, BOTH, token_mask=MASK)
    for row in range(3):
        own = MASK[row].bool()
        alone, _ = forward(
            library, x[row : row + 1, own], BOTH[row : row + 1], token_mask=MASK[row : row + 1, own]
        )
        assert_close(together[row, own], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_in_a_vision_encoder_the_first_patch_of_the_row_or_of_the_sample_decides(
    packed: bool,
) -> None:
    library = branched("vision")
    counts = torch.tensor([3, 0, 2])  # the second sample has no image
    x = torch.randn(5, IN) if packed else torch.randn(5, 4, IN)
    first = x[[0, 0, 0, 3, 3]] if packed else x[:, 0]
    weights = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 1]])
    found, _ = forward(library, x, weights, vision_rows=counts)
    expected = by_branches(library, x, first, "aaabb")
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_token_that_is_recorded_is_one_a_sequence() -> None:
    library = branched()
    _, gates = forward(library, torch.randn(2, 5, IN), torch.ones(2, 3), recording=True)
    assert [record.weights.shape for record in gates.records] == [(2, EXPERTS)] * 2  # both routers


# -- on whole models --------------------------------------------------------------------------


def make_module(family: str, kind: str) -> ContinualModule:
    backbone = make_backbone(family)
    several = UniformAllocator(rank=1, experts=4)
    if kind == "tokens":
        module = ContinualModule(backbone, several, TokenRouter(TopKGate(2)), dropout=0.0)
    else:
        mixing, allocator = {
            "common": (CommonMixing(), UniformAllocator(rank=2)),
            "branches": (BranchMixing(top_k=2), several),
        }[kind]
        module = ContinualModule(
            backbone, allocator, CommonExpertRouter(OracleRouter(), mixing), dropout=0.0
        )
    for name in ("shared",) if kind == "tokens" else ("common", "a", "b"):
        plan = module.allocator.allocate(name, module.units(), None, not module.library.names)
        module.add_expert(plan)
        randomize(module.library, name)
    module.library.train_only(None)
    module.evaluation = EvaluationPass(answer_lengths=dict.fromkeys("ab", 4))
    return module


@pytest.mark.parametrize("kind", ["tokens", "common", "branches"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])  # rows of images, packed patches
def test_mixed_experts_answer_a_sample_in_a_batch_as_alone(family: str, kind: str) -> None:
    module = make_module(family, kind)
    samples, tasks = make_samples((1, 0, 2), answers=False), ("a", "b", "a")
    bare = [module.backbone.generate(batch_of(module, samples, tasks).inputs, 4, 1)]
    for beams in (1, 2):
        module.beams = beams
        together = module.answer(batch_of(module, samples, tasks)).texts
        for row, sample in enumerate(samples):
            alone = module.answer(batch_of(module, [sample], tasks[row : row + 1]))
            assert alone.texts == [together[row]]
        bare.append(together)
    assert bare[0] != bare[1]  # the experts do something
