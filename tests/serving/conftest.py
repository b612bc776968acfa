"""Runs and answers that the tests of the server share; no test may change them."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_runs import Question, learn, questions_of

import dmole
from dmole.inference import Answer, RoutedModel, make_request


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that has learned two tasks."""
    return learn(tmp_path_factory.mktemp("runs"), "first", ("paint", "count"))


@pytest.fixture(scope="session")
def model(run: Path) -> RoutedModel:
    return dmole.load(run)


@pytest.fixture(scope="session")
def questions(run: Path) -> list[Question]:
    return questions_of(run)


@pytest.fixture(scope="session")
def offline(model: RoutedModel, questions: list[Question]) -> list[Answer]:
    """Answers to the questions, each computed alone and without the server."""
    requests = [
        make_request(question.text, question.png, max_new_tokens=question.tokens)
        for question in questions
    ]
    return [model.answer([request])[0] for request in requests]


@pytest.fixture(scope="session")
def next_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that has learned one more task after those of the first one."""
    root = tmp_path_factory.mktemp("more")
    return learn(root, "second", ("paint", "count", "read"), extended=run)
