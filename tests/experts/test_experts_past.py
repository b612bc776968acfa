"""Past experts in host memory: results are those of experts that stay on the device."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import make_backbone, make_samples, randomize
from families.modules import batch_of
from torch import Tensor

from dmole.allocation import UniformAllocator
from dmole.module import ContinualModule
from dmole.regularizers import Orthogonality
from dmole.routing import OracleRouter
from dmole.run.context import StageContext

NAMES = ("a", "b", "c", "d")


def make_module(limit: int | None) -> ContinualModule:
    module = ContinualModule(
        make_backbone("llava"),
        UniformAllocator(rank=2, experts=1),
        OracleRouter(),
        dropout=0.0,
        past_experts_on_device=limit,
        regularizers=[Orthogonality(0.1)],
    )
    for index, name in enumerate(NAMES):
        module.add_expert(module.allocator.allocate(name, module.units(), None, not index))
        randomize(module.library, name, 0.1)
    module._trainer = SimpleNamespace(global_step=0)
    module.log = lambda *_, **__: None
    module.begin_stage(StageContext(4, ("d",), ("d",)))
    return module


def sizes(module: ContinualModule) -> dict[str, int]:
    """Return the numbers of each expert that are loaded."""
    return {
        name: sum(parameter.numel() for _, parameter in module.library.parameters(name))
        for name in NAMES
    }


def outcome(module: ContinualModule) -> dict[str, Tensor]:
    """Return the gradients of a step in which a past expert computes, and the logits of others."""
    samples = make_samples((1, 0, 2, 1))
    module.train()
    loss, step = module.compute_step(batch_of(module, samples, "dbdb"))
    (loss + module.regularizers[0](step)).backward()
    found = {
        f"{path}.{key}": parameter.grad
        for path, expert in module.library.experts("d")
        for key, parameter in expert.named_parameters()
    }
    module.eval()
    batch = replace(batch_of(module, samples, "abca"), labels=None)
    with torch.inference_mode():
        gates = module.make_gates(module.route(batch).gates, batch)
        with module.library.context.use(gates):
            return found | {"logits": module.backbone.model(**batch.inputs).logits}


def test_experts_are_loaded_for_the_batches_that_use_them_and_results_are_equal() -> None:
    module, plain = make_module(1), make_module(None)
    full = sizes(plain)
    assert min(full.values()) > 0
    assert sizes(module) == {**dict.fromkeys("abc", 0), "d": full["d"]}
    assert plain.library.past.loaded == ()
    ours, theirs = outcome(module), outcome(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert module.library.past.loads == 3
    assert sizes(module) == full  # a batch may use more than the limit
    module.library.past.trim()
    assert module.library.past.loaded == ("c",)
    assert sizes(module) == {**full, "a": 0, "b": 0}


def test_what_is_said_of_an_expert_and_saved_does_not_depend_on_where_it_is() -> None:
    module, plain = make_module(0), make_module(None)
    for name in NAMES:
        ours, theirs = module.library.tensors(name), plain.library.tensors(name)
        assert list(ours) == list(theirs)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert module.library.digest(name) == plain.library.digest(name)
        assert module.library.count(name) == plain.library.count(name)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert module.library.past.loads == 0  # nothing is loaded for it


def test_an_expert_that_trains_again_is_loaded_and_its_new_values_are_held_later() -> None:
    module = make_module(0)
    before = module.library.state_dict("a")
    module.begin_stage(StageContext(5, ("a",), ("a",)))
    assert [name for name, size in sizes(module).items() if size] == ["a"]
    assert module.library.past.held("a") is None
    for _, parameter in module.library.parameters("a"):
        assert parameter.requires_grad
        parameter.data.add_(1.0)
    module.begin_stage(StageContext(6, ("d",), ("d",)))
    module.library.past.require(["a"])
    for path, expert in module.library.experts("a"):
        assert torch.equal(expert.lora_a, before[f"{path}.lora_a"] + 1.0)


def test_values_that_are_loaded_from_a_file_reach_an_expert_in_host_memory() -> None:
    module = make_module(2)
    values = {key: value + 1.0 for key, value in module.library.state_dict("b").items()}
    module.library.past.require(["b"])
    module.library.load_state_dict("b", values)
    module.library.past.require(["b"])
    for path, expert in module.library.experts("b"):
        assert torch.equal(expert.lora_b, values[f"{path}.lora_b"])
    module.library.remove("b")
    assert module.library.past.held("b") is None


def test_an_evaluation_without_training_loads_only_what_it_uses() -> None:
    module = make_module(1)
    module.library.past.require("abc")
    module.setup("test")
    assert sizes(module)["d"] > 0  # it may train on
    assert {name for name, size in sizes(module).items() if not size} == set("abc")


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="past_experts_on_device must not be negative, got -1"):
        make_module(-1)
