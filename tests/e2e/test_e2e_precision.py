"""A run in mixed precision: experts and router stay in float32, answers are the matrix's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from small_runs import Recipe

from dmole.callbacks import ContinualCallback
from dmole.cli.main import main
from dmole.data.batch import Batch
from dmole.module import Answers, ContinualModule
from dmole.trainer import ContinualTrainer


class GateSets(ContinualCallback):
    """Notes which experts the training batches used."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_train_batch_start(
        self, trainer: ContinualTrainer, module: ContinualModule, batch: Batch, batch_idx: int
    ) -> None:
        self.seen.append(module.route(batch).gate_sets())


Seen = tuple[Path, list[list[str]]]
"""A run folder, and the gate sets of its training batches."""


def fit(folder: Path, **trainer: Any) -> Seen:
    gates = GateSets()
    torch.manual_seed(0)
    return Recipe(trainer=trainer, callbacks=[gates]).build(folder).fit(), gates.seen


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return fit(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return fit(tmp_path_factory.mktemp("mixed"), precision="bf16-mixed")


@pytest.mark.slow
def test_the_router_is_the_same_to_the_bit_at_any_precision(full: Seen, mixed: Seen) -> None:
    for name in ("router/router.json", "routing.csv"):
        assert (full[0] / name).read_text() == (mixed[0] / name).read_text()
    assert full[1] == mixed[1]
    files = sorted((full[0] / "router").glob("*.safetensors"))
    assert len(files) == 2
    for path in files:
        theirs = load_file(mixed[0] / "router" / path.name)
        for key, tensor in load_file(path).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, theirs[key])


def test_mixed_precision_is_that_of_the_steps_and_not_of_the_experts(
    full: Seen, mixed: Seen
) -> None:
    files = sorted((full[0] / "experts").glob("*/*.safetensors"))
    for path in files:
        theirs = load_file(mixed[0] / path.relative_to(full[0]))
        assert {tensor.dtype for tensor in theirs.values()} == {torch.float32}
    assert any(not torch.equal(tensor, theirs[key]) for key, tensor in load_file(path).items())
    plans = [(run / "allocation.csv").read_text() for run in (full[0], mixed[0])]
    assert plans[0] == plans[1]  # scored in the precision of the weights


def test_oracle_answers_stay_to_the_letter_in_mixed_precision(
    mixed: Seen,
) -> None:
    rows = (mixed[0] / "oracle_matrix.csv").read_text().splitlines()
    column = [row.split(",")[1] for row in rows[2:]]  # after the stage of the first task
    assert len(column) == 2
    assert column[0] == column[1] != ""


@pytest.mark.slow
def test_float16_with_a_scaled_loss_learns(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu")  # what Lightning takes on a GPU
    run, _ = fit(tmp_path, plugins=[plugin])
    assert plugin.state_dict()["scale"] < 65536  # some steps overflowed and were left out
    for path in (run / "experts").glob("*/*.safetensors"):
        tensors = load_file(path)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert any(tensor.any() for key, tensor in tensors.items() if "lora_B" in key)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predict_answers_in_the_precision_of_the_run(
    quick_run: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen: list[bool] = []
    answer = ContinualModule.answer

    def spy(self: ContinualModule, batch: Batch) -> Answers:
        seen.append(torch.is_autocast_enabled("cpu"))
        return answer(self, batch)

    monkeypatch.setattr(ContinualModule, "answer", spy)
    words = ["predict", str(quick_run), "--prompt", "what ?", "--max_new_tokens", "2"]
    assert main([*words, "--trainer.precision", precision]) == 0
    assert seen == [precision == "bf16-mixed"]
