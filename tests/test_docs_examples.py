"""Examples in the docstrings of the main classes are there and right."""

from __future__ import annotations

import doctest
import logging
from pathlib import Path

import pytest

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.callbacks import EvaluationMatrix
from dmole.callbacks.answers import AnswerBook
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.metrics import summarize
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.regularizers import Regularizer
from dmole.routing import AutoencoderRouter, OracleRouter, RouteQuery, SharedRouter
from dmole.streams import SequentialStream
from dmole.trainer import ContinualTrainer

MAIN = (
    AnswerBook,
    AutoencoderRouter,
    ContinualDataModule,
    ContinualModule,
    ContinualTrainer,
    EvaluationMatrix,
    OracleRouter,
    PretrainedBackbone,
    Regularizer,
    RouteQuery,
    SensitivityAllocator,
    SequentialStream,
    SharedRouter,
    Task,
    UniformAllocator,
    summarize,
)


@pytest.mark.parametrize("thing", MAIN, ids=lambda thing: str(thing.__name__))
def test_a_main_class_has_an_example_that_runs(
    thing: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # the command line, where another test ran it, makes the log print
    monkeypatch.setattr(logging.getLogger("dmole"), "disabled", True)
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__, globs={})
    assert example.examples, f"{thing.__name__} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
