"""Runs of the command line's configs, built in this process, and how two of them compare."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from safetensors.torch import load_file

from dmole.callbacks import ContinualCallback, ExpertInspector
from dmole.cli.lightning import ContinualCLI
from dmole.datamodule import ContinualDataModule
from dmole.metrics import read_matrix
from dmole.module import ContinualModule
from dmole.storage.predictions import predicted_stages, read_stage
from dmole.trainer import ContinualTrainer
from experiments.gpu.common import Setting
from experiments.run_content import run_content
from experiments.stage_memory import NoFigures

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def tasks(names: Sequence[str], train: int, test: int, tokens: int = 4) -> list[dict[str, Any]]:
    """Return the settings of synthetic tasks."""
    return [
        {
            "name": name,
            "train": f"synthetic://{name}/train?size={train}",
            "test": f"synthetic://{name}/test?size={test}",
            "max_new_tokens": tokens,
        }
        for name in names
    ]


class _Parser(ContinualCLI):
    """Parses many configs: making the parser takes longer than a short run."""

    requested = False

    def instantiate_classes(self) -> None:
        """Build the objects of the config, if it was requested."""
        if self.requested:
            super().instantiate_classes()


@dataclass
class Run:
    """The three objects of a run."""

    trainer: ContinualTrainer
    module: ContinualModule
    data: ContinualDataModule

    def fit(self, checkpoint: str | None = None) -> Path:
        """Learn the sequence and return the run folder."""
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=checkpoint)
        return self.trainer.run_dir


class RunBuilder:
    """Builds runs from ``quickstart.yaml``, a method and further settings, in this order.

    Args:
        setting: Gives accelerator and folder.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._cli = _Parser(["--config", str(CONFIGS / "quickstart.yaml")], run=False)
        self._cli.requested = True

    def build(
        self,
        name: str,
        data: Mapping[str, Any],
        *,
        method: str | None = None,
        trainer: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        callbacks: Sequence[ContinualCallback] = (),
    ) -> Run:
        """Build a run.

        Args:
            name: Name of the run.
            data: Settings of the data.
            method: Name of a shipped method.
            trainer: Settings of the trainer.
            model: Settings of the module.
            callbacks: Callbacks in addition to those of the config.
        """
        settings: dict[str, Any] = {
            "trainer": {
                "name": name,
                "default_root_dir": str(self._setting.folder),
                "accelerator": self._setting.accelerator,
                "enable_progress_bar": False,
                "checkpoint_every_n_steps": 0,
                **(trainer or {}),
            },
            "model": dict(model or {}),
            "data": dict(data),
        }
        files = [] if method is None else [str(CONFIGS / "methods" / f"{method}.yaml")]
        texts = [str(CONFIGS / "quickstart.yaml"), *files, yaml.safe_dump(settings)]
        words = [word for text in texts for word in ("--config", text)]
        cli = self._cli
        cli.config = cli.parser.parse_args(words)
        cli.instantiate_classes()
        trainer_of_run = cast("ContinualTrainer", cli.trainer)
        own: list[Any] = trainer_of_run.callbacks  # type: ignore[attr-defined]
        for place, callback in enumerate(own):
            if type(callback) is ExpertInspector:
                own[place] = NoFigures()
        own[:0] = callbacks
        return Run(trainer_of_run, cli.model, cli.datamodule)


def compare(ours: Path, theirs: Path) -> Iterator[tuple[str, Any]]:
    """Yield how two finished runs differ: plan, matrix, gate sets, answers, experts."""
    plans = [_column(run / "allocation.csv", "selected") for run in (ours, theirs)]
    yield "same allocation", plans[0] == plans[1]
    first, second = (read_matrix(run / "evaluation_matrix.csv")[0] for run in (ours, theirs))
    yield "largest difference in the evaluation matrix", round(float(abs(first - second).max()), 4)
    yield "share of answers from the same experts", _equal_share(ours, theirs, "gate_set")
    yield "share of equal answers", _equal_share(ours, theirs, "prediction")
    yield "largest relative difference of an expert", f"{_expert_difference(ours, theirs):.2e}"


def unequal(ours: Path, theirs: Path) -> str:
    """Return the names of the results that are not equal bit for bit, or ``none``."""
    first, second = run_content(ours), run_content(theirs)
    names = [name for name in first | second if first.get(name) != second.get(name)]
    return ", ".join(names) or "none"


def _column(path: Path, name: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def _equal_share(ours: Path, theirs: Path, key: str) -> float:
    first, second = _answers(ours, key), _answers(theirs, key)
    equal = sum(bool(second[place] == value) for place, value in first.items())
    return round(equal / len(first), 4)


def _answers(run: Path, key: str) -> dict[tuple[int, str, str], Any]:
    """Return a value of every answer of a run, by stage, task and sample."""
    return {
        (stage, task, line["id"]): line[key]
        for stage in predicted_stages(run)
        for task, lines in read_stage(run, stage).items()
        for line in lines
    }


def _expert_difference(ours: Path, theirs: Path) -> float:
    """Return the largest ``|a - b| / |b|`` of an expert, over all of its tensors."""
    worst = 0.0
    for path in sorted((ours / "experts").glob("*/*.safetensors")):
        first, second = load_file(path), load_file(theirs / path.relative_to(ours))
        if first.keys() != second.keys():
            return float("inf")
        gap = sum(float((first[key] - second[key]).double().square().sum()) for key in first)
        size = sum(float(second[key].double().square().sum()) for key in first)
        worst = max(worst, (gap / size) ** 0.5)
    return worst
