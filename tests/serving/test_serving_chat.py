"""A served run gives the answers that it gives offline, to the client of OpenAI."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from serving_runs import Question, Served, served

from dmole.inference import Answer, RoutedModel, make_request
from dmole.routing import gate_set_name
from dmole.serving.limits import Limits


@pytest.fixture(scope="module")
def server(model: RoutedModel, offline: list[Answer]) -> Iterator[Served]:
    """A server of the run; the offline answers were computed before."""
    with served(model, Limits(max_new_tokens=40, max_wait_ms=20, max_queue=100)) as running:
        yield running


def metric(server: Served, name: str) -> float:
    """Return a figure of ``/metrics``; 0 before it is counted."""
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def ask(client: openai.OpenAI, question: Question, model: str = "auto", **more: Any) -> Any:
    options: Any = {"max_tokens": question.tokens, **more}
    return client.chat.completions.create(model=model, messages=question.messages, **options)


@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_concurrent_requests_of_mixed_tasks_get_their_offline_answers(
    server: Served, questions: list[Question], offline: list[Answer], count: int
) -> None:
    assert len({answer.experts for answer in offline}) > 1  # else one gate set would do
    before = metric(server, "dmole_batch_size_count")
    rows = [row % len(questions) for row in range(count)]
    start = threading.Barrier(count)
    with server.client() as client, ThreadPoolExecutor(count) as pool:

        def send(row: int) -> Any:
            start.wait()
            return ask(client, questions[row])

        found = list(pool.map(send, rows))
    for row, completion in zip(rows, found, strict=True):
        choice, expected = completion.choices[0], offline[row]
        assert choice.message.content == expected.text
        assert choice.finish_reason == expected.finish_reason
        assert completion.dmole["experts"] == list(expected.experts)
        assert completion.usage.prompt_tokens == expected.prompt_tokens
        assert completion.usage.completion_tokens == expected.new_tokens
        assert completion.dmole["losses"] == pytest.approx(expected.losses, rel=1e-3)
        assert completion.dmole["thresholds"] == pytest.approx(expected.thresholds)
    assert (
        metric(server, "dmole_batch_size_count") - before < count * 5 / 8
    )  # they did share batches


def test_a_streamed_answer_is_the_whole_one_in_pieces(
    server: Served, model: RoutedModel, questions: list[Question], offline: list[Answer]
) -> None:
    with server.client() as client:
        for question, expected in zip(questions[:6], offline, strict=False):
            options: Any = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = list(ask(client, question, **options))
            assert chunks[0].choices[0].delta.role == "assistant"
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
            assert text == expected.text
            assert chunks[-2].choices[0].finish_reason == expected.finish_reason
            assert chunks[-2].dmole["experts"] == list(expected.experts)
            assert chunks[-1].choices == []
            assert chunks[-1].usage.completion_tokens == expected.new_tokens


def test_the_name_of_the_model_forces_experts_or_none(
    server: Served, model: RoutedModel, questions: list[Question]
) -> None:
    question = questions[0]
    names = {"paint": ("paint",), "count+paint": ("count", "paint"), "base": (), "tiny": ()}
    with server.client() as client:
        found = {name: ask(client, question, name) for name in names}
    for name, experts in names.items():
        assert found[name].model == name
        assert found[name].dmole == {"experts": list(experts), "losses": {}, "thresholds": {}}
    request = make_request(question.text, question.png, max_new_tokens=4, experts=("paint",))
    # the engine is idle, since every request has been answered
    assert found["paint"].choices[0].message.content == model.answer([request])[0].text


def test_a_header_names_the_experts(
    server: Served, questions: list[Question], offline: list[Answer]
) -> None:
    with server.client() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=questions[0].messages, max_completion_tokens=4
        )
    assert raw.headers["X-Dmole-Experts"] == gate_set_name(offline[0].experts)


def test_models_lists_the_router_the_base_model_and_the_experts(server: Served) -> None:
    with server.client() as client:
        assert [entry.id for entry in client.models.list()] == ["auto", "base", "paint", "count"]
        for name in ("auto", "base", "paint"):
            assert client.models.retrieve(name).id == name
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
            client.models.retrieve("gpt-9")


def test_a_conversation_has_earlier_turns(
    server: Served, model: RoutedModel, questions: list[Question]
) -> None:
    earlier = {"role": "assistant", "content": "red", "refusal": None}
    messages: Any = [*questions[0].messages, earlier, {"role": "user", "content": "and now ?"}]
    with server.client() as client:
        found = client.chat.completions.create(model="base", messages=messages, max_tokens=3)
        alone = client.chat.completions.create(
            model="base", messages=[messages[-1]], max_tokens=3, temperature=0, n=1, seed=1
        )
    assert found.usage is not None
    assert alone.usage is not None
    assert found.usage.prompt_tokens > alone.usage.prompt_tokens


def test_a_stop_sequence_is_not_part_of_the_answer(
    server: Served, questions: list[Question], offline: list[Answer]
) -> None:
    row = next(row for row, answer in enumerate(offline) if len(answer.text) > 2)
    text = offline[row].text
    with server.client() as client:
        for stream in (False, True):
            found = ask(client, questions[row], stop=[text[1:3], "zzz"], stream=stream)
            choices = [chunk.choices[0] for chunk in found] if stream else found.choices
            pieces = [c.delta.content if stream else c.message.content for c in choices]
            assert "".join(piece or "" for piece in pieces) == text[: text.index(text[1:3])]
            assert choices[-1].finish_reason == "stop"


def test_an_answer_without_a_length_may_be_as_long_as_the_server_allows(
    server: Served, questions: list[Question]
) -> None:
    with server.client() as client:
        found = client.chat.completions.create(model="auto", messages=questions[0].messages)
        assert found.usage is not None
        assert 1 <= found.usage.completion_tokens <= 40
        with pytest.raises(openai.BadRequestError, match="41, this server gives at most 40"):
            ask(client, questions[0], max_tokens=41)


def test_metrics_count_requests_experts_and_rejections(
    server: Served, questions: list[Question]
) -> None:
    counted = 'dmole_requests_total{model="paint",status="200"}'
    active = 'dmole_expert_activations_total{expert="paint"}'
    missing = 'dmole_requests_total{model="",status="404"}'
    before = [metric(server, name) for name in (counted, active, missing)]
    with server.client() as client:
        ask(client, questions[0], "paint")
        with pytest.raises(openai.NotFoundError):
            ask(client, questions[0], "gpt-9")
    after = [metric(server, name) for name in (counted, active, missing)]
    assert after == [value + 1 for value in before]
    assert metric(server, "dmole_queue_length") == 0


def test_the_alarm_goes_on_when_no_expert_accepts_the_requests_of_a_window(
    model: RoutedModel, server: Served
) -> None:
    with served(model, alarm_window=3, alarm_share=0.6) as watched, watched.client() as client:
        for number in range(3):
            assert metric(watched, "dmole_unseen_task_alarm") == 0
            text = Question(b"", f"what is a poem of {number} lines ?")
            client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": text.text}], max_tokens=1
            )
        assert metric(watched, "dmole_rejected_share") == 1
        assert metric(watched, "dmole_unseen_task_alarm") == 1


def test_health_says_that_the_server_is_ready(server: Served) -> None:
    for path in ("/health", "/health/ready", "/health/live"):
        with urllib.request.urlopen(server.url + path) as response:
            assert json.load(response)["status"] in ("ready", "live")
