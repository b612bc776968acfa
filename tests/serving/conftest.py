"""Runs and answers that the tests of the server share; no test may change them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from proxy_requests import LIMITS
from raw_requests import KEY
from serving_runs import Question, Served, learn, questions_of, served
from stand_in import StandIn, serve_stand_in
from starlette.testclient import TestClient

import dmole
from dmole.inference import Answer, RoutedModel, make_request
from dmole.inference.loading import load_router
from dmole.inference.route_only import RouteOnly
from dmole.publish.adapters import export_adapters
from dmole.run.export_file import Export, read_export
from dmole.serving.limits import Access, Limits
from dmole.serving.proxy import RouteProxy, Upstream
from dmole.serving.proxy_api import make_proxy_app


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


@pytest.fixture(scope="session")
def growing(run: Path) -> RoutedModel:
    """A model of its own, since these tests change its experts."""
    return dmole.load(run)


@pytest.fixture
def server(growing: RoutedModel, next_run: Path, run: Path) -> Iterator[Served]:
    """A server that may add experts of the second run; afterwards it has those of the first."""
    access = Access(api_key=KEY, run_folder=next_run.parents[1])
    with served(growing, Limits(max_batch=4, max_queue=200), access) as running:
        yield running
    for name in set(growing.experts) - {"paint", "count"}:
        growing.remove_expert(name)


@pytest.fixture(scope="session")
def upstream() -> Iterator[StandIn]:
    with serve_stand_in() as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "export"
    export_adapters(run, output, base="org/model")
    return output


@pytest.fixture(scope="session")
def export(folder: Path) -> Export:
    return read_export(folder)


@pytest.fixture(scope="session")
def router(folder: Path, export: Export) -> RouteOnly:
    return load_router(folder, export)


@pytest.fixture
def client(router: RouteOnly, export: Export, upstream: StandIn) -> Iterator[TestClient]:
    proxy = RouteProxy(router, export, Upstream(upstream.url), LIMITS, Access())
    upstream.bodies.clear()
    with TestClient(make_proxy_app(proxy)) as client:
        yield client
