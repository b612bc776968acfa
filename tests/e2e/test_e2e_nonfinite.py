"""A gradient that is NaN once ends a run whose checkpoint is good, or costs it one step."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_digests import run_digests
from safetensors.torch import load_file
from small_runs import Recipe
from test_e2e_distributed import TWO_RANKS, fit_on_two_ranks

from dmole.callbacks import ContinualCallback
from dmole.run.checkpoint_file import read_checkpoint

LAST = 2
"""Steps of a stage: 8 samples in batches of 4."""


class NaNOnce(ContinualCallback):
    """Makes one number of a gradient NaN at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            gradient = next(p.grad for p in pl_module.parameters() if p.grad is not None)
            gradient.view(-1)[0] = math.nan


class NaNOnRank(NaNOnce):
    """Does so on one rank alone."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            super().on_after_backward(trainer, pl_module)


RECIPE = Recipe(trainer={"checkpoint_every_n_steps": 1})


# the last step of stage 1, the first of stage 2
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), LAST])
def test_the_run_ends_before_the_step_and_resumes_to_the_bit(
    step: int, plain_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"the gradient of expert .* is nan at step {step} of"):
        replace(RECIPE, callbacks=[NaNOnce(step)]).build(tmp_path).fit()
    for file in (tmp_path / "dmole" / "version_0" / "checkpoints").glob("*.ckpt"):
        tensors = read_checkpoint(file)["state_dict"].values()
        assert all(torch.isfinite(tensor).all() for tensor in tensors)
    assert run_digests(RECIPE.build(tmp_path).fit(Path("auto"))) == run_digests(plain_run)


@pytest.mark.slow
def test_a_skipped_step_is_listed_in_the_metrics(tmp_path: Path) -> None:
    model = {"skip_nonfinite_steps": 1}
    run = replace(RECIPE, callbacks=[NaNOnce(LAST - 1)], model=model).build(tmp_path).fit()
    (row,) = json.loads((run / "metrics.json").read_text())["skipped_steps"]
    assert (row["stage"], row["expert"], row["step"]) == (1, "paint", LAST)
    assert "expert 'paint' at " in row["reason"]
    assert len(row["samples"].split(", ")) == 4
    for path in (run / "experts").glob("*/*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.slow
def test_all_ranks_skip_a_step_that_is_not_finite_on_one_of_them(tmp_path: Path) -> None:
    model = {"skip_nonfinite_steps": 1, "dropout": 0.0}
    recipe = replace(
        RECIPE,
        devices=2,
        trainer=RECIPE.trainer | TWO_RANKS,
        data={"batch_size": 2},
        callbacks=[NaNOnRank(0)],
        model=model,
    )
    run, states = fit_on_two_ranks(lambda: recipe.build(tmp_path / "skipped"))
    (row,) = json.loads((run / "metrics.json").read_text())["skipped_steps"]
    assert row["reason"].endswith("on rank 1")
    assert len(row["samples"].split(", ")) == 4  # of both ranks
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
