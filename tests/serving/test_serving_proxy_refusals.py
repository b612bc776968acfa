"""Who may use the routing proxy, and what it refuses before the upstream server sees it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from proxy_requests import LIMITS, chat, picture, post
from stand_in import StandIn
from starlette.testclient import TestClient

from dmole.cli.main import main
from dmole.inference.loading import load_router
from dmole.inference.route_only import RouteOnly
from dmole.run.export_file import Export
from dmole.serving.limits import Access
from dmole.serving.proxy import RouteProxy, Upstream
from dmole.serving.proxy_api import make_proxy_app


def test_the_keys_of_proxy_and_upstream_server_are_apart(
    router: RouteOnly, export: Export, upstream: StandIn
) -> None:
    body = chat("how many?") | {"model": "base"}
    for key, own, given, sent in [
        (None, None, "Bearer mine", "Bearer mine"),
        ("theirs", None, None, "Bearer theirs"),
        (None, "secret", "Bearer secret", None),
    ]:
        access = Access(api_key=own)
        proxy = RouteProxy(router, export, Upstream(upstream.url, key), LIMITS, access)
        with TestClient(make_proxy_app(proxy)) as client:
            headers = {} if given is None else {"Authorization": given}
            answer = client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
            assert upstream.keys[-1] == sent
            wrong = client.post("/v1/chat/completions", json=body)
            assert wrong.status_code == (401 if own else 200)


@pytest.mark.parametrize("model", ["auto", "base", "org/model", "count"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([picture("http://169.254.169.254/secret")], "this server fetches no images"),
        ([picture("file:///etc/passwd")], "this server reads no files"),
        ([picture("data:image/png;base64,AAAA")] * 3, "have 3 images"),
        ("x" * 3000, "at most 2000"),
    ],
    ids=["address", "file", "images", "characters"],
)
def test_a_named_model_is_checked_as_a_routed_one(
    client: TestClient, upstream: StandIn, model: str, content: Any, message: str
) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    answer = post(client, body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]["message"])
    assert upstream.bodies == []


def test_a_base_model_with_any_name_has_a_header_and_frees_its_connection(
    router: RouteOnly,
    export: Export,
    upstream: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = replace(export, base="/models/模型 1%")
    proxy = RouteProxy(router, named, Upstream(upstream.url), LIMITS, Access())
    heads = []
    send = proxy.send

    async def kept(*arguments: Any) -> Any:
        heads.append(await send(*arguments))
        return heads[-1]

    monkeypatch.setattr(proxy, "send", kept)
    with TestClient(make_proxy_app(proxy), raise_server_exceptions=False) as client:
        body = chat("how many?") | {"model": "base"}
        answer = post(client, body)
        assert answer.status_code == 200
        assert answer.headers["x-dmole-model"] == "/models/%E6%A8%A1%E5%9E%8B%201%25"
        assert upstream.bodies[-1]["model"] == "/models/模型 1%"

        def broken(*arguments: Any) -> Any:
            raise RuntimeError

        monkeypatch.setattr("dmole.serving.proxy_api.headers_of", broken)
        assert post(client, body).status_code == 500
    assert [head.is_closed for head in heads] == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"model": 3}, "model must be a text"),
        ({"model": "other"}, "there is no model 'other'"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "at most 2000"),
        ({"messages": [{"role": "user", "content": "1 " * 900}]}, "the model refuses it"),
        (chat("a", b"no image"), "cannot be read"),
    ],
    ids=["empty", "text", "number", "unknown", "characters", "tokens", "image"],
)
def test_a_bad_request_is_refused_before_the_upstream_server_sees_it(
    client: TestClient, upstream: StandIn, change: dict[str, Any], message: str
) -> None:
    answer = post(client, chat("how many?") | change)
    assert answer.status_code in (400, 404)
    assert message in answer.json()["error"]["message"]
    assert upstream.bodies == []


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    for content in (b"{", b"[]", b"\xff"):
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == 400


def test_a_page_of_another_site_cannot_use_the_key_of_the_upstream_server(
    client: TestClient, upstream: StandIn
) -> None:
    path, body = "/v1/chat/completions", chat("how many?") | {"model": "base"}
    for origin, status in [("http://evil.example", 403), ("null", 403), ("http://testserver", 200)]:
        assert client.post(path, json=body, headers={"Origin": origin}).status_code == status
    for kind in ({"Content-Type": "text/plain"}, {}):  # a blob of a page has no type
        assert client.post(path, content=json.dumps(body), headers=kind).status_code == 415
    assert len(upstream.bodies) == 1


def test_a_proxy_needs_a_whole_export_an_address_and_the_base_model_of_the_run(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "export")
    (copy / "router" / "router.json").write_text("{}")
    upstream = ["--upstream", "http://127.0.0.1:9/v1"]
    for words, message in [
        ([str(run), *upstream], "is no export: it has no routers.json"),
        ([str(copy), *upstream], "router.json is not the file of this export"),
        ([str(folder), "--upstream", "host:8000"], "--upstream must be http://host:port/v1"),
        ([str(folder), *upstream, "--host", "0.0.0.0"], "can be reached by others"),
        ([str(folder), *upstream, "--max_images", "0"], "--max_images must be positive"),
    ]:
        capsys.readouterr()
        assert main(["route-proxy", *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_the_base_model_of_a_proxy_is_the_one_that_the_export_names(
    folder: Path, export: Export
) -> None:
    with pytest.raises(ValueError, match=r"export was made with a base model of other weights"):
        load_router(folder, replace(export, weights="0" * 64))


@pytest.mark.parametrize("variable", ["DMOLE_API_KEY", "DMOLE_UPSTREAM_KEY"])
@pytest.mark.parametrize("key", ["", " ", "a ", "größe"])
def test_a_key_of_the_proxy_is_refused_if_a_header_cannot_hold_it(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    key: str,
) -> None:
    monkeypatch.setenv(variable, key)
    words = [str(folder), "--upstream", "http://127.0.0.1:9/v1", "--host", "0.0.0.0"]
    assert main(["route-proxy", *words, "--no_api_key"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dmole: {variable} must be visible ASCII characters")
