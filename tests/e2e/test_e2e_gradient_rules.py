"""Gradient rules in a run: once a step, after the ranks' average, resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from lightning.pytorch.plugins import MixedPrecision
from small_runs import Recipe, Sequenced, small_task
from test_e2e_accumulation import assert_same_run
from test_e2e_accumulation import with_sgd as with_sgd_and_answers
from test_e2e_distributed import TWO_RANKS, expert_tensors, fit_on_two_ranks
from test_e2e_nonfinite import NaNOnce
from torch import Tensor
from torch.testing import assert_close

from dmole.allocation import UniformAllocator
from dmole.callbacks import GradientRules
from dmole.curriculum.rules import (
    GradientRule,
    InputPreconditioning,
    InputProjection,
    PastDirection,
    Training,
    UtilityFreezing,
    WeightSubspace,
)
from dmole.routing import SharedRouter, TokenRouter, TopKGate
from dmole.run.checkpoint_file import read_checkpoint
from dmole.streams.stream import SequentialStream

TASKS = [small_task("paint", 3, 1), small_task("count", 5, 1)]
CLIPPED = {"gradient_clip_val": 0.05}
MIXTURE = {
    "allocator": lambda: UniformAllocator(rank=1, experts=3, targets="mlp"),
    "router": lambda: TokenRouter(TopKGate(2)),
    "model": {"dropout": 0.0},
}
ADAPTER = {
    "allocator": lambda: UniformAllocator(rank=1, targets="mlp"),
    "router": SharedRouter,
    "model": {"dropout": 0.0},
}


def recipe(
    *rules: GradientRule, batch_size: int = 4, trainer: dict[str, Any] | None = None, **parts: Any
) -> Recipe:
    return Recipe(
        tasks=TASKS,
        stream=SequentialStream(shared_expert="shared"),
        callbacks=[GradientRules(list(rules))],
        data={"batch_size": batch_size},
        trainer=CLIPPED | (trainer or {}),
        **MIXTURE | parts,
    )


def unasked(built: Sequenced) -> Sequenced:
    """Return a run that answers no test sample."""
    built.trainer._evaluate = lambda module: None  # type: ignore[method-assign]
    return built


def with_sgd(made: Recipe, folder: Path) -> Sequenced:
    return unasked(with_sgd_and_answers(made, folder))


def same() -> list[GradientRule]:
    return [InputPreconditioning(mu=1e-3, components=8), UtilityFreezing()]


def state_of(run: Path) -> dict[str, Tensor]:
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    found: dict[str, Tensor] = content["callbacks"]["GradientRules"]["tensors"]
    return found


def assert_same_state(ours: Path, theirs: Path) -> None:
    ours_, theirs_ = state_of(ours), state_of(theirs)
    assert ours_.keys() == theirs_.keys()
    for key, tensor in ours_.items():
        if key.endswith("count"):
            assert tensor == theirs_[key] > 0
        else:
            scale = float(theirs_[key].abs().max())
            assert_close(tensor, theirs_[key], rtol=1e-3, atol=1e-4 * scale, msg=key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in batches of 4."""
    return with_sgd(recipe(*same()), tmp_path_factory.mktemp("whole")).fit()


def test_a_rule_acts_once_on_the_sum_of_the_micro_batches(whole: Path, tmp_path: Path) -> None:
    trainer = {"accumulate_grad_batches": 4}
    parts = with_sgd(recipe(*same(), batch_size=1, trainer=trainer), tmp_path).fit()
    assert_same_run(parts, whole)
    assert_same_state(parts, whole)


@pytest.mark.slow
def test_two_ranks_descend_what_one_does_with_the_halves_of_both(
    whole: Path, tmp_path: Path
) -> None:
    """The last batch has a single sample: the second rank repeats it, and must not count it."""
    built = recipe(*same(), batch_size=2, trainer=TWO_RANKS, devices=2)
    run, states = fit_on_two_ranks(lambda: with_sgd(built, tmp_path))
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
    assert_same_run(run, whole)
    assert_same_state(run, whole)


EVERY: dict[str, tuple[Callable[[], list[GradientRule]], dict[str, Any]]] = {
    "same": (same, MIXTURE),
    "others": (
        lambda: [
            InputProjection(energy=0.5, components=8),
            PastDirection(probability=0.5),
            WeightSubspace(preserved=0.2),
        ],
        ADAPTER,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_run_cut_in_its_second_stage_keeps_the_state_of_the_rules_to_the_bit(
    name: str, tmp_path: Path
) -> None:
    make, parts = EVERY[name]
    built = recipe(*make(), batch_size=1, trainer={"checkpoint_every_n_steps": 1}, **parts)
    expected = unasked(built.build(tmp_path / "whole")).fit()
    cut = recipe(*make(), batch_size=1, trainer={"checkpoint_every_n_steps": 1}, **parts)
    with pytest.raises(CutError):
        unasked(replace(cut, callbacks=[*cut.callbacks, CutAfter(5)]).build(tmp_path / "cut")).fit()
    resumed = recipe(*make(), batch_size=1, trainer={"checkpoint_every_n_steps": 1}, **parts)
    run = unasked(resumed.build(tmp_path / "cut")).fit(Path("auto"))
    for read in (expert_tensors, state_of):
        ours, theirs = read(run), read(expected)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


class Probe(GradientRule):
    """Notes what a rule sees."""

    observes = True  # type: ignore[assignment]

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.tokens: dict[str, int] = {}
        self.routed: set[bool] = set()

    def observe(self, path: str, inputs: Tensor, probabilities: Tensor | None) -> None:
        self.tokens[path] = self.tokens.get(path, 0) + len(inputs)
        self.routed.add(probabilities is not None and len(probabilities) == len(inputs))

    def apply(self, training: Training) -> None:
        gradients = [p.grad.flatten() for p in training.parameters().values() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


def probe(folder: Path, build: Callable[[Recipe, Path], Sequenced], **parts: Any) -> Probe:
    seen = Probe()
    made = recipe(seen, **parts)
    build(replace(made, tasks=made.tasks[1:]), folder).fit()
    return seen


def test_a_rule_sees_each_real_token_once_and_the_probabilities_of_its_mixture(
    tmp_path: Path,
) -> None:
    """Activations that are computed again in the backward pass are not seen again."""
    whole = probe(tmp_path / "whole", with_sgd)
    model = {"dropout": 0.0, "activation_checkpointing": True}
    again = probe(tmp_path / "again", with_sgd, model=model, batch_size=5)
    assert whole.tokens == again.tokens
    assert whole.routed == again.routed == {True}
    assert len(whole.norms) == 2
    assert len(again.norms) == 1


class Scaled(MixedPrecision):
    """16-bit steps on the CPU, with a loss scaler."""

    def __init__(self, scale: float) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def scaled(scale: float) -> Callable[[Recipe, Path], Sequenced]:
    def build(made: Recipe, folder: Path) -> Sequenced:
        built = with_sgd(made, folder)
        built.trainer.strategy.precision_plugin = Scaled(scale)
        return built

    return build


def test_a_rule_sees_gradients_unscaled_and_before_they_are_clipped(tmp_path: Path) -> None:
    plain = probe(tmp_path / "plain", with_sgd)
    found = probe(tmp_path / "scaled", scaled(2.0**10))
    assert found.norms == pytest.approx(plain.norms, rel=1e-3)
    assert min(plain.norms) > CLIPPED["gradient_clip_val"]


def test_a_step_that_is_left_out_leaves_no_trace_in_the_state(tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []
    for name, more in (("whole", []), ("skipped", [NaNOnce(1)])):
        made = recipe(InputPreconditioning(components=8), UtilityFreezing(), batch_size=1)
        rules: Sequence[Any] = [*more, *made.callbacks]
        model = {"dropout": 0.0, "skip_nonfinite_steps": 1}
        made = replace(made, tasks=TASKS[:1], callbacks=rules, model=model)
        run = with_sgd(made, tmp_path / name).fit()
        states.append(state_of(run))
    whole, skipped = states
    assert all(tensor.isfinite().all() for tensor in skipped.values())
    counts = [key for key in whole if key.endswith("count")]
    assert counts
    assert all(0 < skipped[key] < whole[key] for key in counts)


@pytest.mark.parametrize("key", ["9/past/x/count", "0/past/x/count"])
def test_a_state_of_other_rules_is_refused(key: str) -> None:
    callback = GradientRules([WeightSubspace()])
    with pytest.raises(ValueError, match=r"has no state|there is no rule for the state"):
        callback.load_state_dict({"tensors": {key: torch.ones(1)}})
    with pytest.raises(ValueError, match="no table of finite tensors"):
        callback.load_state_dict({"tensors": {key: torch.full((1,), torch.nan)}})
