"""Experts join and leave a server while it answers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from raw_requests import KEY, message, send
from serving_runs import Question, Served, questions_of, served

import dmole
from dmole.inference import Answer, RoutedModel, make_request
from dmole.routing import SharedRouter
from dmole.serving.limits import Access


def add(server: Served, run: object, name: str = "read") -> tuple[int, Any]:
    return send(server, {"run": str(run), "name": name}, path="/v1/experts")


@pytest.mark.slow
def test_an_expert_joins_under_load_and_no_request_is_lost(
    server: Served,
    growing: RoutedModel,
    next_run: Path,
    questions: list[Question],
    offline: list[Answer],
) -> None:
    new = questions_of(next_run)[2]  # of the new task
    with server.client(KEY) as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> Any:
            question, model = questions[number % len(questions)], ("auto", "paint")[number % 2]
            return client.chat.completions.create(
                model=model, messages=question.messages, max_tokens=question.tokens
            )

        asked = [pool.submit(ask, number) for number in range(48)]
        asked[0].result()
        status, content = add(server, next_run)
        assert (status, content["id"]) == (201, "read")
        assert not all(answer.done() for answer in asked)  # it joined while others waited
        for number, answer in enumerate(asked):
            found = answer.result()
            if number % 2 == 1:  # the new expert cannot be its choice
                assert found.dmole["experts"] == ["paint"]
            elif found.dmole["experts"] == list(offline[number % len(questions)].experts):
                assert found.choices[0].message.content == offline[number % len(questions)].text
        assert "read" in [entry.id for entry in client.models.list()]
        found = client.chat.completions.create(
            model="read", messages=new.messages, max_tokens=new.tokens
        )
    request = make_request(new.text, new.png, max_new_tokens=new.tokens, experts=("read",))
    # the same as the expert in the run that it comes from
    assert found.choices[0].message.content == dmole.load(next_run).answer([request])[0].text


def test_an_expert_that_leaves_is_not_found_and_can_come_back(
    server: Served, next_run: Path
) -> None:
    assert add(server, next_run.relative_to(next_run.parents[1]))[0] == 201  # below the folder
    assert add(server, next_run)[0] == 409
    status, content = send(server, "", path="/v1/experts/read", method="DELETE")
    assert (status, content) == (200, {"id": "read", "object": "model", "deleted": True})
    with server.client(KEY) as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve("read")
    assert send(server, "", path="/v1/experts/read", method="DELETE")[0] == 404
    assert add(server, next_run)[0] == 201


def test_of_two_removals_at_once_one_finds_no_expert(
    server: Served, next_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert add(server, next_run)[0] == 201
    both = threading.Event()  # until it is set, no removal takes place
    server.service.engine.between_batches(lambda: both.wait(60))
    change = server.service.change_experts
    started: list[Callable[[RoutedModel], None]] = []

    async def counted(task: Callable[[RoutedModel], None]) -> None:
        started.append(task)
        if len(started) == 2:
            both.set()
        await change(task)

    monkeypatch.setattr(server.service, "change_experts", counted)
    with ThreadPoolExecutor(2) as pool:
        words = {"path": "/v1/experts/read", "method": "DELETE"}
        answers = [pool.submit(send, server, "", **words) for _ in range(2)]
    found = dict(answer.result() for answer in answers)
    assert set(found) == {200, 404}
    assert found[404]["error"]["message"] == "there is no expert 'read'"


def test_an_expert_that_samples_share_cannot_leave(
    server: Served, growing: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "router", SharedRouter())
    text = message(server, "", path="/v1/experts/paint", method="DELETE")
    assert text == "experts of a SharedRouter can neither join nor leave: samples share them"
    assert growing.experts == ("paint", "count")


def test_an_expert_that_cannot_join_leaves_the_others_as_they_are(
    server: Served, next_run: Path, run: Path, tmp_path: Path, growing: RoutedModel
) -> None:
    root = next_run.parents[1]
    damaged = root / "damaged"
    shutil.copytree(next_run, damaged)
    file = damaged / "experts" / "read" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    refused = [
        (add(server, run), 403),  # outside of the folder
        (add(server, f"{root}/../.."), 403),
        (add(server, "a\0b"), 403),
        (add(server, root / "none"), 400),
        (add(server, next_run, "count"), 409),
        (add(server, next_run, "tally"), 400),  # no expert of that run
        (add(server, next_run, "auto"), 400),
        (add(server, next_run, "../read"), 400),
        (add(server, damaged), 400),
    ]
    for (status, content), expected in refused:
        assert status == expected, content
        assert content["error"]["message"].isprintable()
    assert growing.experts == ("paint", "count")
    shutil.rmtree(damaged)


def test_a_server_without_key_changes_no_experts(growing: RoutedModel, next_run: Path) -> None:
    with served(growing, access=Access(run_folder=next_run.parents[1])) as open_to_all:
        assert add(open_to_all, next_run)[0] == 403
        assert send(open_to_all, "", path="/v1/experts/paint", method="DELETE")[0] == 403
