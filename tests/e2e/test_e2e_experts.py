"""`dmole experts` on a run as the command line leaves it: taken out, brought back, brought in."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_digests import run_digests
from safetensors.torch import load_file
from small_runs import embedded

import dmole
from dmole.cli.main import main
from dmole.inference import Request, RoutedModel
from dmole.models import PretrainedBackbone
from dmole.report.runs import load_run
from dmole.routing import OracleRouter
from dmole.run.loading import build_data
from dmole.run.model_file import read_run_settings
from dmole.storage.predictions import read_stage

TRAIN, TEST = "synthetic://caption/train?size=32", "synthetic://caption/test?size=8"


def predictions(run: Path, stage: int, task: str) -> list[dict[str, Any]]:
    return read_stage(run, stage)[task]


def gate_sets(run: Path, stage: int, task: str) -> dict[str, int]:
    with (run / "routing.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == "test"]
    return {
        row["gate_set"]: int(row["count"])
        for row in rows
        if (row["stage"], row["true_task"]) == (str(stage), task)
    }


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, quick_run: Path) -> Path:
    """The small run without its first expert, whose router entry holds the statistics."""
    output, before = tmp_path_factory.mktemp("without") / "version_1", run_digests(quick_run)
    with embedded() as seen:
        assert main(["experts", str(quick_run), "remove", "paint", "--output", str(output)]) == 0
    assert run_digests(quick_run) == before
    assert seen == []  # the evaluation reads the embeddings of the run
    return output


def test_the_matrix_says_what_became_of_the_samples_of_an_expert_taken_out(
    quick_run: Path, without: Path
) -> None:
    run = load_run(without)
    assert run.task_names == ["count", "paint"]
    assert run.matrix.shape == (2, 2)
    assert run.oracle_matrix is not None
    assert bool(torch.isnan(torch.tensor(run.oracle_matrix[:, 1])).all())  # none learned it
    assert "paint" not in gate_sets(without, 1, "paint")
    assert sum(gate_sets(without, 1, "paint").values()) == 8
    assert gate_sets(without, 1, "count") == gate_sets(quick_run, 2, "count")
    assert predictions(without, 1, "count") == predictions(quick_run, 2, "count")
    metrics = json.loads((without / "metrics.json").read_text())
    assert metrics["retention"]["per_task"].keys() == {"paint"}
    assert metrics["edits"][0]["experts"] == ["paint"]
    assert metrics["parent"]["run"] == "small/version_0"


@pytest.mark.slow
def test_an_expert_that_comes_back_answers_as_before(
    tmp_path: Path, quick_run: Path, without: Path
) -> None:
    output = tmp_path / "back"
    words = ["import", str(quick_run), "paint", "--output", str(output)]
    assert main(["experts", str(without), *words]) == 0
    for task in ("paint", "count"):
        assert predictions(output, 2, task) == predictions(quick_run, 2, task)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that PEFT wrote, with factors that change the answers of the tiny model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from dmole.demo.tiny import TINY_PATH

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["up_proj"], init_lora_weights=False
    )
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_foreign_adapter_answers_as_under_peft_and_is_found_by_its_samples(
    tmp_path: Path, quick_run: Path, adapter: Path
) -> None:
    from peft import PeftModel

    output = tmp_path / "with"
    words = ["--from_adapter", str(adapter), "--as", "caption", "--samples", TRAIN, "--test", TEST]
    flags = ["--max_new_tokens", "4", "--output", str(output)]
    assert main(["experts", str(quick_run), "import", *words, *flags]) == 0
    counts = gate_sets(output, 3, "caption")
    found = sum(n for names, n in counts.items() if "caption" in names.split("+"))
    assert found >= 0.8 * sum(counts.values())
    assert gate_sets(output, 3, "paint") == gate_sets(quick_run, 2, "paint")
    model = dmole.load(output)
    assert model.experts == ("paint", "count", "caption")
    samples = build_data(read_run_settings(output)).test_samples("caption")
    requests = [Request(s.turns, s.images, max_new_tokens=8, experts=()) for s in samples[:8]]
    base = [answer.text for answer in model.answer(requests)]
    forced = [replace(request, experts=("caption",)) for request in requests]
    ours = [answer.text for answer in model.answer(forced)]
    bare = RoutedModel(PretrainedBackbone("tiny"), OracleRouter())
    PeftModel.from_pretrained(bare.backbone.model, adapter)  # puts its LoRA into the model
    theirs = [answer.text for answer in bare.answer(requests)]
    assert ours == theirs
    assert ours != base


def test_a_router_entry_fitted_to_the_samples_of_a_task_is_that_of_the_run(
    tmp_path: Path, quick_run: Path, without: Path
) -> None:
    output, address = tmp_path / "fitted", "synthetic://paint/train?size=32"
    words = ["import", str(quick_run), "paint", "--samples", address, "--no_evaluation"]
    assert main(["experts", str(without), *words, "--output", str(output)]) == 0
    fitted = load_file(output / "router/paint.safetensors")
    of_run = load_file(quick_run / "router/paint.safetensors")
    shared = {"mean", "std"}  # in the entry of the first expert, which is now another one
    assert of_run.keys() - fitted.keys() == shared
    assert all(torch.equal(fitted[key], of_run[key]) for key in fitted)
