"""A step of several micro-batches is the step of their joint batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, Sequenced, small_task
from test_e2e_distributed import (
    CLIPPED,
    EQUAL,
    TWO_RANKS,
    expert_tensors,
    fit_on_two_ranks,
)
from torch.testing import assert_close

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.data import Task
from dmole.regularizers import (
    AdversarialTask,
    Distillation,
    ElasticWeights,
    Orthogonality,
    Regularizer,
    RouterEntropy,
)
from dmole.routing import (
    CommonExpertRouter,
    CommonMixing,
    OracleRouter,
    SharedRouter,
    TokenRouter,
    TopKGate,
)
from dmole.streams.stream import ReplayStream
from dmole.trainer import ContinualTrainer

TASKS = [small_task("paint", 3, 1), small_task("count", 5, 1, epochs=2)]


class StepLosses(ContinualCallback):
    """Keeps the logged terms of every optimizer step."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: ContinualTrainer, *args: Any) -> None:
        metrics = trainer.callback_metrics
        terms = [key for key in metrics if "train/" in key and "per_second" not in key]
        if trainer.global_step and trainer.global_step not in self.values:
            self.values[trainer.global_step] = {key: float(metrics[key]) for key in terms}


def shared(*terms: Regularizer) -> dict[str, Any]:
    """Return the parts of a method with one adapter, and replay."""
    return {
        "stream": ReplayStream(buffer_size=4, shared_expert="shared"),
        "allocator": UniformAllocator,
        "router": SharedRouter,
        "model": {"dropout": 0.0, "regularizers": list(terms)},
    }


def method(name: str) -> dict[str, Any]:
    """Return the parts of a method; its objects are new, since they keep state."""
    if name == "parameters":
        return shared(ElasticWeights(10.0, samples=3), Orthogonality(0.1, l2=0.01))
    if name == "tokens":
        return shared(Distillation(1.0))
    if name == "inputs":
        mixture = {"router": lambda: TokenRouter(TopKGate(2))}
        experts = {"allocator": lambda: UniformAllocator(rank=1, experts=3, targets="mlp")}
        return shared(RouterEntropy(0.1)) | mixture | experts
    if name == "samples":
        return {
            "stream": ReplayStream(buffer_size=4),
            "allocator": lambda: UniformAllocator(rank=2, budget_fraction=1.0, targets="mlp"),
            "router": lambda: CommonExpertRouter(OracleRouter(), CommonMixing()),
            "model": {"dropout": 0.0, "regularizers": [AdversarialTask(0.1)]},
        }
    return dict(EQUAL)


def learn(
    folder: Path, name: str, batch_size: int, parts: int, **trainer: Any
) -> tuple[Path, dict[int, dict[str, float]]]:
    """Return the run folder and the logged terms of its steps."""
    losses = StepLosses()
    recipe = Recipe(
        tasks=TASKS,
        data={"batch_size": batch_size},
        trainer=CLIPPED | {"accumulate_grad_batches": parts} | trainer,
        callbacks=[losses],
        **method(name),
    )
    return with_sgd(recipe, folder).fit(), losses.values


def with_sgd(recipe: Recipe, folder: Path) -> Sequenced:
    """Return a run whose step is linear in the gradient: Adam would hide its scale."""
    built = recipe.build(folder)
    built.module.make_optimizer = partial(torch.optim.SGD, lr=2.0)
    return built


def assert_same_run(ours: Path, theirs: Path) -> None:
    ours_, theirs_ = expert_tensors(ours), expert_tensors(theirs)
    assert ours_.keys() == theirs_.keys()
    assert any(tensor.any() for key, tensor in ours_.items() if "lora_b" in key.lower())
    for key, tensor in ours_.items():
        # updates are above 0.1; entries near zero have the rounding errors of large ones
        assert_close(tensor, theirs_[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("tokens", "parameters", "inputs", "samples")
        ),
    ],
)
def test_micro_batches_learn_like_their_joint_batch(name: str, tmp_path: Path) -> None:
    """The last step of an epoch has 3 samples of 4 (2 micro-batches) or 1 (1 micro-batch)."""
    whole, losses = learn(tmp_path / "whole", name, 4, 1)
    parts, ours = learn(
        tmp_path / "parts", name, 1 if name == "plain" else 2, 4 if name == "plain" else 2
    )
    assert ours.keys() == losses.keys()
    for step, terms in losses.items():
        assert ours[step] == pytest.approx(terms, rel=1e-4, abs=1e-6), step
    assert_same_run(parts, whole)


@pytest.mark.slow
def test_a_window_that_a_limit_cuts_short_is_a_mean_over_its_own_tokens(tmp_path: Path) -> None:
    """5 micro-batches of an epoch in windows of 4 and 1; the whole has batches of 4 and 1."""
    tasks = [Task("count", "synthetic://count/train?size=5", "synthetic://count/test?size=1")]
    runs = []
    for name, batch_size, parts, limit in (("whole", 4, 1, 2), ("parts", 1, 4, 5)):
        trainer = {"accumulate_grad_batches": parts, "limit_train_batches": limit}
        data = {"batch_size": batch_size}
        recipe = Recipe(tasks=tasks, data=data, trainer=trainer, **EQUAL)
        runs.append(with_sgd(recipe, tmp_path / name).fit())
    assert_same_run(runs[1], runs[0])


@pytest.mark.slow
def test_a_run_cut_between_two_windows_resumes_to_the_bit(tmp_path: Path) -> None:
    recipe = Recipe(
        tasks=TASKS,
        data={"batch_size": 1},
        trainer={"accumulate_grad_batches": 3, "checkpoint_every_n_steps": 1},
    )
    whole = recipe.build(tmp_path / "whole").fit()
    with pytest.raises(CutError):
        replace(recipe, callbacks=[CutAfter(3)]).build(tmp_path / "cut").fit()
    assert run_digests(recipe.build(tmp_path / "cut").fit(Path("auto"))) == run_digests(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "parameters", "inputs", "samples"])
def test_two_ranks_that_accumulate_learn_like_one_that_does_not(name: str, tmp_path: Path) -> None:
    whole, _ = learn(tmp_path / "whole", name, 4, 1)
    recipe = Recipe(
        tasks=TASKS,
        data={"batch_size": 1},
        trainer=TWO_RANKS | CLIPPED | {"accumulate_grad_batches": 2},
        devices=2,
        **method(name),
    )
    run, states = fit_on_two_ranks(lambda: with_sgd(recipe, tmp_path / "ranks"))
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
    assert_same_run(run, whole)
