"""Runs whose experts start from past ones and whose router ranks by likelihood."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import CutAfter, CutAt, CutError
from run_digests import run_digests
from safetensors.torch import load_file
from small_runs import Recipe, one_answer
from torch import Tensor

from dmole.allocation import SensitivityAllocator
from dmole.callbacks import ContinualCallback
from dmole.metrics import read_matrix
from dmole.module import ContinualModule
from dmole.predictor import Predictor
from dmole.routing import AutoencoderRouter
from dmole.run.state import SequenceState
from dmole.storage.predictions import read_stage

SLOW = pytest.mark.slow


class Watch(ContinualCallback):
    """Remembers the experts at the first step of the second stage and when it is trained."""

    def __init__(self) -> None:
        self.before: dict[str, dict[str, Tensor]] = {}
        self.after: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        library = pl_module.library
        self.before = {name: library.state_dict(name) for name in library.names}

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        library = module.library
        self.after = {name: library.state_dict(name) for name in library.names}


def recipe(data: Path, *callbacks: ContinualCallback, **trainer: Any) -> Recipe:
    """Return two tasks with one answer, so that the expert of the first suits the second."""
    data.mkdir(parents=True, exist_ok=True)
    return Recipe(
        tasks=[one_answer(data, "first", "red"), one_answer(data, "second", "red")],
        allocator=lambda: SensitivityAllocator(start="closest", start_ratio=math.inf),
        router=lambda: AutoencoderRouter(
            ranking="likelihood", partner=False, max_experts=1, threshold_scale=2.0
        ),
        callbacks=callbacks,
        trainer=trainer,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm") / "data"


@pytest.fixture(scope="module")
def watched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    watch = Watch()
    return recipe(data, watch).build(tmp_path_factory.mktemp("whole")).fit(), watch


@pytest.fixture(scope="module")
def whole(watched: tuple[Path, Watch]) -> Path:
    return watched[0]


def metrics(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


def test_the_second_expert_starts_with_the_tensors_of_the_first_which_stay_as_they_are(
    watched: tuple[Path, Watch],
) -> None:
    run, watch = watched
    first, second = watch.before["first"], watch.before["second"]
    assert first.keys() == second.keys()
    assert any(tensor.any() for key, tensor in first.items() if "lora_b" in key)
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert all(torch.equal(tensor, watch.after["first"][key]) for key, tensor in first.items())
    assert any(not torch.equal(t, watch.after["second"][k]) for k, t in second.items())
    saved = load_file(run / "experts" / "first" / "adapter_model.safetensors")
    assert sorted(float(t.double().sum()) for t in saved.values()) == sorted(
        float(t.double().sum()) for t in first.values()
    )


def test_the_parent_is_recorded_and_the_oracle_forgets_exactly_nothing(whole: Path) -> None:
    content = metrics(whole)
    assert content["experts"] == {
        "first": {"starts_from": None},
        "second": {"starts_from": "first"},
    }
    oracle, _ = read_matrix(whole / "oracle_matrix.csv")
    np.testing.assert_array_equal(oracle, [[np.nan] * 2, [100.0, np.nan], [100.0, 100.0]])
    assert content["oracle"]["BWT"] == 0.0


def test_an_expert_that_starts_fresh_is_recorded_nowhere(plain_run: Path) -> None:
    assert "experts" not in metrics(plain_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(CutAt(2, "train"), marks=SLOW),
        CutAfter(11),  # within the second stage, after a step that was saved
        pytest.param(CutAt(2, "router"), marks=SLOW),
        pytest.param(CutAt(2, "evaluate"), marks=SLOW),
    ],
    ids=["train", "step", "router", "evaluate"],
)
def test_a_run_cut_in_its_second_stage_ends_as_if_it_had_not_been(
    data: Path, whole: Path, tmp_path: Path, cut: ContinualCallback
) -> None:
    steps = int(isinstance(cut, CutAfter))
    broken = recipe(data, cut, checkpoint_every_n_steps=steps).build(tmp_path)
    with pytest.raises(CutError):
        broken.fit()
    run = broken.trainer.run_dir
    assert (run / "checkpoints" / "stage.ckpt").exists() == bool(steps)
    torch.manual_seed(99)  # a new process has drawn other numbers
    assert recipe(data).build(tmp_path).fit(run) == run
    assert run_digests(run) == run_digests(whole)


@pytest.mark.slow
def test_full_evaluation_and_a_later_one_give_the_same_answers(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    full = recipe(data, incremental_evaluation=False).build(tmp_path / "full").fit()
    assert run_digests(full) == run_digests(whole)
    built, output = recipe(data).build(tmp_path / "none"), tmp_path / "again"
    built.trainer.evaluate(built.module, built.data, run=whole, output=output)
    names = ["evaluation_matrix.csv", "oracle_matrix.csv"]
    names += [str(path.relative_to(whole)) for path in whole.glob("predictions/*.jsonl")]
    for name in names:
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    assert "experts" not in metrics(output)  # the folder of the run says it


def test_a_prompt_is_answered_as_in_the_evaluation(data: Path, whole: Path, tmp_path: Path) -> None:
    lines = [read_stage(whole, 2)[task][0] for task in ("first", "second")]
    built = recipe(data).build(tmp_path)
    prompts = [{"prompt": f"say {task}"} for task in ("first", "second")]
    answers = Predictor(built.module, built.data, whole)(prompts, 2)
    assert [(a["prediction"], a["gate_set"]) for a in answers] == [
        (line["prediction"], line["gate_set"]) for line in lines
    ]
