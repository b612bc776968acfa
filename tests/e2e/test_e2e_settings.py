"""Nonsensical values on the command line end in one line, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import FitWords

from dmole.cli.main import main

OF_PARTS = [
    ("--trainer.devices=99999", "trainer.devices must be at most"),
    ("--trainer.version=-3", "trainer.version must be at least 0, got -3"),
    ("--data.batch_size=-3", "batch_size must be at least 1, got -3"),
    ("--data.num_workers=-1", "num_workers must be at least 0, got -1"),
    ("--model.alpha=0", "alpha must be above 0 and finite, got 0.0"),
    ("--model.dropout=1", "dropout must be in [0, 1), got 1.0"),
    ("--model.dropout=-1", "dropout must be in [0, 1), got -1.0"),
    ("--model.beams=0", "beams must be in [1, 64], got 0"),
    ("--model.optimizer.init_args.lr=-1", "Invalid learning rate: -1.0"),
]
"""Values that the parts refuse when they are made, which their own tests check."""


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.devices=-3", "trainer.devices must be at least 1 on the CPU, got '-3'"),
        ("--trainer.devices=1,2", "trainer.devices lists GPUs, the CPU takes a number"),
        ("--trainer.num_nodes=0", "trainer.num_nodes must be at least 1, got 0"),
        ("--trainer.num_nodes=2", "several nodes need torchrun or SLURM"),
        ("--trainer.accelerator=nonsense", "You selected an invalid accelerator name"),
        ("--trainer.strategy=nonsense", "You selected an invalid strategy name"),
        ("--trainer.precision=17", "trainer.precision"),
        ("--trainer.accumulate_grad_batches=0", "must be at least 1, got 0"),
        ("--data.num_workers=99999999", "num_workers must be at most"),
        ("--model.optimizer.init_args.lr=1e400", "model.optimizer: lr must be finite, got inf"),
        ("--seed_everything=-1", "-1 is not in bounds"),
        *(pytest.param(*value, marks=pytest.mark.slow) for value in OF_PARTS),
    ],
)
def test_a_nonsensical_value_is_named_in_one_line(
    flag: str,
    message: str,
    fit_words: FitWords,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = fit_words(tmp_path, "--trainer.strategy=ddp") if "nodes=2" in flag else None
    assert main([*(words or fit_words(tmp_path)), flag]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dmole: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("data: {cache_bytes: null}", "data.cache_bytes: expected an integer, got null"),
        ("trainer: {case_images: null}", "trainer.case_images: expected an integer, got null"),
        (
            "trainer: {keep_embeddings: null}",
            "trainer.keep_embeddings: expected true or false, got",
        ),
    ],
)
def test_null_in_a_config_is_refused_where_it_means_nothing(
    config: str,
    message: str,
    fit_words: FitWords,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "null.yaml").write_text(config)
    words = fit_words(tmp_path / "runs")
    assert main([*words, "--config", str(tmp_path / "null.yaml")]) == 1
    assert f"dmole: {message}" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
