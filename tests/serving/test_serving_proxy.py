"""The routing proxy asks a server that stands in for vLLM for the adapter of each gate set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from proxy_requests import LIMITS, chat, post
from serving_runs import Question, served_in_thread
from stand_in import StandIn
from starlette.testclient import TestClient

from dmole.inference import RoutedModel, make_request
from dmole.inference.route_only import RouteOnly
from dmole.run.export_file import Export
from dmole.serving.limits import Access
from dmole.serving.proxy import RouteProxy, Upstream
from dmole.serving.proxy_api import make_proxy_app
from dmole.serving.server import Server


def test_each_request_goes_to_the_adapter_of_the_gate_set_that_the_whole_model_chooses(
    client: TestClient, model: RoutedModel, questions: list[Question], upstream: StandIn
) -> None:
    seen = set()
    for question in questions:
        expected = model.route_requests([make_request(question.text, question.png)])[0].experts
        body = chat(question.text, question.png, temperature=0.5, max_tokens=3, guided_regex="a")
        answer = post(client, body)
        name = "+".join(expected) or "org/model"
        assert answer.status_code == 200
        assert answer.json() == {"model": name, "choices": []}
        assert answer.headers["x-dmole-experts"] == ("+".join(expected) or "base")
        assert answer.headers["x-dmole-model"] == name
        assert "x-dmole-fallback" not in answer.headers
        assert upstream.bodies[-1] == {**body, "model": name}  # keys that only vLLM knows pass
        seen.add(expected)
    assert len(seen) > 1
    text = client.get("/metrics").text
    assert f'dmole_proxy_requests_total{{status="200"}} {float(len(questions))}' in text


def test_a_named_model_is_not_routed(client: TestClient, upstream: StandIn) -> None:
    for model, sent in [("base", "org/model"), ("org/model", "org/model"), ("count", "count")]:
        assert post(client, chat("how many?") | {"model": model}).json()["model"] == sent
    refused = post(client, chat("how many?") | {"model": "count+paint"})
    assert refused.status_code == 404
    assert "there is no adapter for count+paint; there are" in refused.text
    assert len(upstream.bodies) == 3
    names = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
    assert names == ["auto", "base", "paint", "count"]


def test_a_pair_without_an_adapter_falls_back_to_its_first_expert_and_says_so(
    client: TestClient, router: RouteOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmole.inference import Route

    monkeypatch.setattr(router, "route_requests", lambda requests: [Route(("count", "paint"))])
    answer = post(client, chat("how many?"))
    assert answer.json()["model"] == "count"
    assert answer.headers["x-dmole-experts"] == "count+paint"
    assert answer.headers["x-dmole-fallback"] == "count"
    counted = 'dmole_proxy_fallbacks_total{experts="count+paint"} 1.0'
    assert counted in client.get("/metrics").text


def assert_stream_is_passed_on(address: str, upstream: StandIn) -> None:
    """Make sure that a part of a stream comes before the upstream server sends the next one."""
    import httpx2

    upstream.release.clear()
    body = chat("how many?", stream=True) | {"model": "paint"}
    url = f"{address}/v1/chat/completions"
    with httpx2.stream("POST", url, json=body, timeout=60) as answer:
        parts = answer.iter_text()
        assert next(parts) == "data: paint\n\n"  # the server waits with the rest
        assert answer.headers["content-type"] == "text/event-stream"
        upstream.release.set()
        assert "".join(parts) == "data: [DONE]\n\n"


def test_a_stream_is_passed_on_as_it_comes(
    router: RouteOnly, export: Export, upstream: StandIn
) -> None:
    proxy = RouteProxy(router, export, Upstream(upstream.url), LIMITS, Access())
    server = Server(uvicorn.Config(make_proxy_app(proxy), log_level="warning"))
    with served_in_thread(server) as address:
        assert_stream_is_passed_on(address, upstream)


@pytest.mark.slow
def test_the_process_of_a_proxy_passes_a_stream_on_and_ends_by_sigterm(
    folder: Path, upstream: StandIn
) -> None:
    words = ["route-proxy", str(folder), "--upstream", upstream.url, "--port", "0"]
    command = [sys.executable, "-m", "dmole", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert_stream_is_passed_on(process.stdout.readline().split()[-1], upstream)
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_errors_of_the_upstream_server_are_passed_on(
    client: TestClient, router: RouteOnly, export: Export
) -> None:
    answer = post(client, chat("how many?", temperature=9))
    assert answer.status_code == 422
    assert answer.json() == {"error": {"message": "too hot"}}
    gone = RouteProxy(router, export, Upstream("http://127.0.0.1:9/v1"), LIMITS, Access())
    with TestClient(make_proxy_app(gone)) as other:
        answer = post(other, chat("how many?"))
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the upstream server cannot be reached"
