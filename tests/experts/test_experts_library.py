"""The library: add, freeze, remove and rebuild experts; nothing old ever changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from families import all_linears, make_backbone, make_batch, make_samples, randomize
from torch import nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, Gates, RoutedLinear


def make_library(model: nn.Module, **kwargs: Any) -> ExpertLibrary:
    return ExpertLibrary(model, lambda _: "language", **kwargs)


def small_model() -> nn.ModuleDict:
    return nn.ModuleDict({"x": nn.Linear(4, 3), "y": nn.Linear(3, 5), "norm": nn.LayerNorm(5)})


def add(
    library: ExpertLibrary,
    name: str,
    paths: Sequence[str] = ("x", "y"),
    rank: int = 2,
    alpha: float = 4.0,
) -> None:
    library.add(name, dict.fromkeys(paths, rank), dict.fromkeys(paths, alpha))


def digests(module: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in module.state_dict().items()
    }


# -- initial weights ---------------------------------------------------------------------------


def first_weights(
    name: str = "a", path: str = "x", seed: int = 0, before: Sequence[str] = ()
) -> torch.Tensor:
    library = make_library(small_model(), seed=seed)
    for other in before:
        add(library, other)
    torch.manual_seed(len(before))  # the global generator must not matter
    add(library, name, paths=("y", "x"))
    return dict(library.experts(name))[path].lora_a


def test_initial_weights_depend_on_seed_name_and_layer_alone() -> None:
    first = first_weights()
    assert torch.equal(first, first_weights(before=("b", "c")))
    assert not torch.equal(first, first_weights(seed=1))
    assert not torch.equal(first, first_weights(name="b"))
    assert not torch.equal(first[:, :3], first_weights(path="y"))


def test_adding_an_expert_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    library = make_library(small_model())
    before = torch.random.get_rng_state()
    add(library, "a")
    assert torch.equal(torch.random.get_rng_state(), before)


# -- bookkeeping -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "keys", "forward", "a_b-c", "0"])
def test_a_task_may_have_the_name_of_a_method(name: str) -> None:
    library = make_library(small_model())
    add(library, name)
    library.train_only(name)
    assert library.names == (name,)
    assert library.model["x"].names == (name,)
    clone = make_library(small_model(), seed=9)
    clone.rebuild(library.architecture())
    clone.load_state_dict(name, library.state_dict(name))
    assert torch.equal(clone.model["x"].expert(name).lora_a, library.model["x"].expert(name).lora_a)
    library.remove(name)
    assert library.names == ()


def test_removing_the_last_expert_restores_the_very_base_layer() -> None:
    model = small_model()
    base = model["x"]
    library = make_library(model)
    add(library, "a")
    add(library, "b", paths=("x",))
    assert isinstance(model["x"], RoutedLinear)
    library.remove("a")
    assert isinstance(model["x"], RoutedLinear)
    assert isinstance(model["y"], nn.Linear)
    library.remove("b")
    assert model["x"] is base
    add(library, "a")  # a name may be used again
    assert library.names == ("a",)


def test_only_the_named_expert_trains() -> None:
    library = make_library(small_model())
    for name in ("a", "b"):
        add(library, name)
    library.train_only("b")
    training = {id(p) for p in library.model.parameters() if p.requires_grad}
    assert training == {id(p) for _, p in library.parameters("b")}
    library.train_only(None)
    assert not any(p.requires_grad for p in library.model.parameters())


def test_counts_are_rank_times_the_sum_of_widths() -> None:
    library = make_library(small_model())
    library.add("a", {"x": 2, "y": 5}, {"x": 1.0, "y": 1.0})
    assert library.count("a") == 2 * (4 + 3) + 5 * (3 + 5)


def test_a_new_layer_takes_over_the_mode_of_the_linear_it_wraps() -> None:
    model = small_model().eval()
    library = make_library(model, dropout=0.5)
    add(library, "a")
    assert not model["x"].training
    assert not model["x"].dropout.training


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({}, "the allocation of 'b' is empty"),
        ({"x": 2, "z": 2}, "the model has no linear 'z'"),
        ({"x": 2, "norm": 2}, "submodule 'norm' is a LayerNorm, not a Linear"),
        ({"x": 2, "y": 0}, "rank of an expert must be at least 1"),
    ],
)
def test_an_impossible_expert_is_refused_and_leaves_the_model_as_it_was(
    ranks: dict[str, Any], message: str
) -> None:
    model = small_model()
    library = make_library(model)
    with pytest.raises(ValueError, match=message):
        library.add("b", ranks, dict.fromkeys(ranks, 1.0))
    assert library.names == ()
    assert isinstance(model["x"], nn.Linear)


def test_a_name_is_given_once() -> None:
    library = make_library(small_model())
    add(library, "a")
    with pytest.raises(ValueError, match="already an expert called 'a'"):
        add(library, "a")


# -- rebuilding --------------------------------------------------------------------------------


def test_an_architecture_survives_json_and_rebuilds_the_same_experts() -> None:
    library = make_library(small_model())
    library.add("a", {"x": 2, "y": 5}, {"x": 1.0, "y": 2.5})
    library.add("b", {"y": 1}, {"y": 8.0})
    for name in library.names:
        randomize(library, name)
    other = make_library(small_model(), seed=7)
    other.rebuild(json.loads(json.dumps(library.architecture())))
    assert other.names == library.names
    for name in library.names:
        other.load_state_dict(name, library.state_dict(name))
        for key, tensor in library.state_dict(name).items():
            assert torch.equal(tensor, other.state_dict(name)[key])
        pairs = zip(library.experts(name), other.experts(name), strict=True)
        assert all(one.scaling == two.scaling for (_, one), (_, two) in pairs)
    other.rebuild(library.architecture())  # agrees: nothing to do
    assert other.architecture() == library.architecture()


def test_an_architecture_that_contradicts_the_library_is_refused() -> None:
    library = make_library(small_model())
    add(library, "a")
    other = library.architecture()
    other["a"]["x"] = [3, 4.0]
    with pytest.raises(ValueError, match="expert 'a' has another shape in the checkpoint"):
        library.rebuild(other)
    with pytest.raises(ValueError, match="the checkpoint has no expert called 'a'"):
        library.rebuild({})


def test_saved_tensors_are_copies() -> None:
    library = make_library(small_model())
    add(library, "a")
    saved = library.state_dict("a")
    saved["x.lora_b"].fill_(1.0)
    assert not library.model["x"].expert("a").lora_b.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("y.lora_b"), "expert 'a': tensor y.lora_b is missing"),
        (lambda t: t.update({"z.lora_a": torch.ones(1)}), "z.lora_a is unknown to the model"),
        (
            lambda t: t.update({"y.lora_b": torch.ones(2, 5)}),
            r"y.lora_b has shape \(2, 5\), the model expects \(5, 2\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_any_is_copied(
    change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    library = make_library(small_model())
    add(library, "a")
    tensors = {key: torch.full_like(t, 7.0) for key, t in library.state_dict("a").items()}
    change(tensors)
    before = library.state_dict("a")
    with pytest.raises(ValueError, match=message):
        library.load_state_dict("a", tensors)
    for key, tensor in library.state_dict("a").items():
        assert torch.equal(tensor, before[key])


# -- nothing is forgotten ----------------------------------------------------------------------


class World:
    """A backbone with a library and a batch; experts on every linear."""

    def __init__(self, family: str) -> None:
        self.backbone = make_backbone(family)
        parts = self.backbone.parts
        self.library = ExpertLibrary(
            self.backbone.model,
            lambda path: "language" if parts.modality_of(path) == "language" else "vision",
            dropout=0.1,
        )
        self.batch = make_batch(self.backbone, make_samples((1, 0, 2)))
        self.rows = self.backbone.vision_rows(self.batch.inputs, self.batch.image_counts)

    def add(self, name: str) -> None:
        add(self.library, name, all_linears(self.backbone))

    def gates(self, *names: Any) -> Gates:
        weights = torch.tensor([[float(n in names) for n in self.library.names]]).expand(3, -1)
        return Gates(self.library.names, weights, self.rows)

    def logits(self, *names: Any) -> torch.Tensor:
        gates = self.gates(*names) if names else None
        with torch.no_grad(), self.library.context.use(gates):
            return self.backbone.model(**self.batch.inputs, use_cache=False).logits

    def train(self, name: str, partner: str | None = None, steps: int = 3) -> None:
        self.library.train_only(name)
        parameters = [p for _, p in self.library.parameters(name)]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
        self.backbone.train()
        active = (name, partner) if partner else (name,)
        for _ in range(steps):
            optimizer.zero_grad()
            with self.library.context.use(self.gates(*active)):
                loss = self.backbone.loss(self.batch.inputs, self.batch.labels)
            loss.backward()
            optimizer.step()
        self.backbone.eval()


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_training_a_second_expert_changes_no_bit_of_what_was_there(family: str) -> None:
    world = World(family)
    base = world.logits()
    fingerprint = world.backbone.fingerprint()

    world.add("old")
    assert torch.equal(world.logits("old"), base)  # a new expert changes nothing
    world.train("old")
    old = world.logits("old")
    assert (old - base).abs().max() > 1e-3
    assert torch.equal(world.logits(), base)  # gates off is the base model

    before = digests(world.backbone)
    world.add("new")
    assert torch.equal(world.logits("old"), old)
    assert_close(world.logits("old", "new"), old, rtol=1e-3, atol=1e-4)  # another kernel
    world.train("new", partner="old")
    after = digests(world.backbone)

    changed = {key for key, digest in before.items() if after[key] != digest}
    assert changed == set()  # base, projector and the old expert
    added = {key for key in after if key not in before}
    assert added
    assert all("expert_new" in key for key in added)
    assert torch.equal(world.logits("old"), old)
    assert torch.equal(world.logits(), base)
    assert not torch.equal(world.logits("new"), base)
    assert world.backbone.fingerprint() == fingerprint

    world.library.remove("new")
    world.library.remove("old")
    assert torch.equal(world.logits(), base)
    assert not any(isinstance(m, RoutedLinear) for m in world.backbone.modules())


def test_a_samples_gradients_do_not_reach_experts_its_gates_close() -> None:
    world = World("llava")
    for name in ("a", "b"):
        world.add(name)
        randomize(world.library, name, 0.1)
    for name in ("a", "b"):
        for _, parameter in world.library.parameters(name):
            parameter.requires_grad_(True)
    with world.library.context.use(world.gates("a")):
        world.backbone.loss(world.batch.inputs, world.batch.labels).backward()
    assert all(p.grad.abs().max() == 0 for _, p in world.library.parameters("b"))
    assert all(p.grad.abs().max() > 0 for _, p in world.library.parameters("a"))


def test_the_digest_of_an_expert_changes_with_any_of_its_tensors() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    library = ExpertLibrary(model, lambda path: "language")
    library.add("a", {"0": 2}, {"0": 4.0})
    before = library.digest("a")
    assert library.digest("a") == before
    _, expert = next(library.experts("a"))
    expert.lora_b.data[0, 0] += 1e-6
    assert library.digest("a") != before
